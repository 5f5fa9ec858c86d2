import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from ultimus_ignite.data.sampler import EndlessBatches


def take(batches, number):
    return [batch for batch, _ in zip(batches, range(number), strict=False)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 40), st.integers(0, 5))
def test_it_goes_on_from_any_iteration_and_every_epoch_sees_every_sample(length, size, start, seed):
    whole = EndlessBatches(range(length), batch_size=size, seed=seed)
    epochs = [take(whole, 3 * len(whole))[e * len(whole) : (e + 1) * len(whole)] for e in range(3)]
    for epoch in epochs:
        assert sorted(i for batch in epoch for i in batch) == list(range(length))
    resumed = EndlessBatches(range(length), batch_size=size, seed=seed, start=start)
    assert take(resumed, 5) == take(whole, start + 5)[start:]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_takes_it_with_workers(workers):
    data = TensorDataset(torch.arange(10))
    batches = EndlessBatches(data, batch_size=4, seed=3, start=2)
    loader = DataLoader(data, batch_sampler=batches, num_workers=workers)
    assert len(loader) == 3
    assert [x.tolist() for (x,) in take(loader, 4)] == take(batches, 4)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="empty"):
        EndlessBatches([], batch_size=1)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        EndlessBatches([1], batch_size=0)
    with pytest.raises(ValueError, match="start must be at least 0, got -1"):
        EndlessBatches([1], batch_size=1, start=-1)
