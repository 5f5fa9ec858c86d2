import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ultimus_ignite.data.augment import Augment, Normalize
from ultimus_ignite.data.rows import Rows
from ultimus_ignite.data.stream import EvaluationBatches, TrainingStream

NORMALIZE = Normalize((0.5,) * 3, (0.25,) * 3)
AUGMENT = Augment(NORMALIZE, crop_padding=2, flip=0.5, cutout=0.5, cutout_size=8)


def make_stream(n=23, batch_size=5, seed=1):
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator())
    return TrainingStream(
        images, torch.arange(n), batch_size=batch_size, seed=seed, augment=AUGMENT
    )


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 40), batch_size=st.integers(1, 50), epoch=st.integers(0, 3))
def test_an_epoch_visits_every_image_once(n, batch_size, epoch):
    stream = make_stream(n, batch_size)
    first = epoch * stream.epoch_length
    batches = itertools.islice(stream.starting_at(first), stream.epoch_length)
    sizes, seen = [], []
    for batch in batches:
        sizes.append(len(batch.labels))
        seen += batch.labels.tolist()
    assert sorted(seen) == list(range(n))
    assert all(size == batch_size for size in sizes[:-1])


@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, 40), seed=st.integers(0, 2**31))
def test_a_stream_that_starts_later_goes_on_as_the_whole_one(start, seed):
    whole = itertools.islice(make_stream(seed=seed).starting_at(0), start, start + 3)
    later = make_stream(seed=seed).starting_at(start)
    for a, b in zip(whole, later, strict=False):
        assert a.iteration == b.iteration
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


def test_nothing_outside_changes_a_batch():
    torch.manual_seed(1)
    a = make_stream().batch(7)
    torch.manual_seed(2)
    torch.rand(100)
    b = make_stream().batch(7)
    assert torch.equal(a.images, b.images)


def test_epochs_and_seeds_differ():
    stream = make_stream()
    assert not torch.equal(stream.order(0), stream.order(1))
    assert not torch.equal(stream.order(0), make_stream(seed=2).order(0))
    image = stream.images[:1].expand(8, -1, -1, -1)
    same = TrainingStream(image, torch.zeros(8).long(), batch_size=8, seed=1, augment=AUGMENT)
    assert not torch.equal(same.batch(0).images, same.batch(1).images)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no training images"):
        make_stream(n=0)


@given(n=st.integers(1, 30), batch_size=st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_evaluation_sees_every_image_once_in_order(n, batch_size):
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 2, 2)
    batches = EvaluationBatches(
        images, torch.arange(n), batch_size=batch_size, normalize=lambda x: x.float()
    )
    for _ in range(2):
        collected = list(batches)
        assert len(collected) == len(batches)
        assert torch.cat([labels for _, labels in collected]).tolist() == list(range(n))
        assert torch.cat([x[:, 0, 0, 0] for x, _ in collected]).tolist() == list(range(n))


@given(rows=st.lists(st.integers(0, 22), min_size=1, max_size=30).map(torch.tensor))
@settings(max_examples=30, deadline=None)
def test_some_rows_of_images_give_the_batches_of_their_copy(rows):
    images = make_stream(23).images
    some, copy = Rows(images, rows), images[rows]
    streams = (
        TrainingStream(each, rows, batch_size=4, seed=1, augment=AUGMENT) for each in (some, copy)
    )
    evaluations = (
        EvaluationBatches(each, rows, batch_size=4, normalize=NORMALIZE) for each in (some, copy)
    )
    for one, other in zip(*(itertools.islice(s.starting_at(0), 9) for s in streams), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    for one, other in zip(*evaluations, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
