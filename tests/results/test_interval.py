"""The interval of an accuracy, against scipy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from ultimus_ignite.results.interval import wilson_interval


@given(data=st.data())
def test_it_is_that_of_scipy(data):
    count = data.draw(st.integers(1, 10**6))
    right = data.draw(st.integers(0, count) | st.sampled_from([0, count]))
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson_interval(right, count) == pytest.approx(tuple(expected), abs=1e-12)
