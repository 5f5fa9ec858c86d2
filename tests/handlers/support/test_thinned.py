"""A series that is thinned out, against the whole of it."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ultimus_ignite.handlers.support.thinned import Thinned


@given(st.lists(st.integers(1, 40), max_size=20), st.integers(2, 9))
def test_it_keeps_every_nth_and_never_more_than_the_limit(parts, limit):
    """Added in parts, and saved and restored between them."""
    whole, series = [], Thinned(limit=limit)
    for part in parts:
        new = [float(len(whole) + i) for i in range(part)]
        whole += new
        series.extend(new)
        series = Thinned(limit=limit, state=series.state_dict())
        assert series.values == whole[:: series.every]
        assert len(series.values) <= limit
    fewer = series.every // 2  # half as many would have been enough, or it is every one
    assert series.every == 1 or len(whole[::fewer]) > limit


def test_a_tensor_with_all_numbers_is_a_state_of_before():
    numbers = torch.tensor([0.1, 0.2], dtype=torch.float64)
    series = Thinned(limit=2, state=numbers)
    series.extend([0.3])
    assert (series.values, series.every) == ([0.1, 0.3], 2)
