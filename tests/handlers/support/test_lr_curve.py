import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultimus_ignite.handlers import LRCurve

RATES = np.geomspace(1e-6, 10.0, 141).tolist()  # 20 a decade
LOSSES = st.lists(st.floats(0.1, 10.0), min_size=1, max_size=60)


def curve(losses, rates=RATES):
    made = LRCurve()
    for rate, loss in zip(rates, losses, strict=False):
        made.add(rate, float(loss))
    return made


def smooth(losses):
    """A curve whose smoothed losses are these: for the rules, which read nothing else."""
    return LRCurve(RATES[: len(losses)], list(losses), list(losses))


def bowl(centre, count=141):
    return [2.0 + 0.1 * math.log10(rate / centre) ** 2 for rate in RATES[:count]]


@given(st.lists(st.floats(1.0, 3.9), min_size=1, max_size=60))
def test_the_smoothed_loss_is_the_mean_with_weights_that_fade_by_a_twentieth(losses):
    made = curve(losses)
    for i, smoothed in enumerate(made.smoothed):
        weights = [0.95 ** (i - j) for j in range(i + 1)]
        assert smoothed == pytest.approx(np.average(losses[: i + 1], weights=weights))


@given(LOSSES)
def test_minimum_is_the_lowest_place_that_is_no_edge(losses):
    best = min(range(len(losses)), key=lambda i: losses[i])
    expected = RATES[best] if 0 < best < len(losses) - 1 else None
    assert smooth(losses).minimum() == expected


@given(LOSSES)
def test_valley_is_the_published_rule_that_is_no_edge(losses):
    """Quadratic search for the longest fall, as published; ties go to the first."""
    lengths = []
    for i, loss in enumerate(losses):
        lengths.append(1 + max((lengths[j] for j in range(i) if losses[j] > loss), default=0))
    longest = max(lengths)
    end = lengths.index(longest)
    section = longest / 3
    place = end - longest + int(section) + int(section / 2)
    found = longest > 2 and 0 < place < len(losses) - 1
    assert smooth(losses).valley() == (RATES[place] if found else None)


@given(st.lists(st.floats(0.1, 10.0), min_size=3, max_size=19))
def test_steepest_is_the_largest_fall_before_the_minimum_that_is_no_edge(losses):
    last = len(losses) - 1  # below 20 points, the first tenth is one step like any other

    def slope(i):
        before, after = max(i - 1, 0), min(i + 1, last)
        return (losses[after] - losses[before]) / (after - before)

    way_down = range(losses.index(min(losses)) + 1)
    steepest = min(map(slope, way_down))
    answer = smooth(losses).steepest()
    if answer is not None:
        place = RATES.index(answer)
        assert place in way_down
        assert 0 < place < last
        assert slope(place) == pytest.approx(steepest) != 0
    elif steepest < 0:
        assert steepest == pytest.approx(min(slope(i) for i in way_down if i in (0, last)))


@pytest.mark.parametrize("centre", [1e-4, 1e-3, 1e-2, 0.1])
def test_a_bowl_has_its_bottom_as_minimum_and_its_middle_as_valley(centre):
    exact, lagging = smooth(bowl(centre)), curve(bowl(centre))
    assert exact.minimum() == pytest.approx(centre)
    assert math.log10(exact.valley()) == pytest.approx(math.log10(1e-6 * centre) / 2, abs=0.1)
    assert exact.steepest() is None  # it falls fastest at its edge
    assert centre < lagging.minimum() < 10 * centre  # the mean remembers a decade


def test_a_plateau_that_falls_into_a_valley_is_steepest_half_way_down():
    losses = [2.0 - math.tanh(4 * math.log10(rate / 1e-3)) for rate in RATES[:100]]
    assert smooth(losses).steepest() == pytest.approx(1e-3)
    assert math.log10(curve(losses).steepest()) == pytest.approx(-3, abs=0.3)


FALLING = [3.0 - (i / 100) ** 2 for i in range(100)]  # faster and faster


@pytest.mark.parametrize(
    ("losses", "minimum", "valley"),
    [
        pytest.param(FALLING, None, RATES[48], id="falls to the end"),
        pytest.param(FALLING[::-1], None, None, id="rises from the start"),
        pytest.param([2.3] * 100, None, None, id="flat"),
        pytest.param([2.3], None, None, id="one point"),
        pytest.param([2.3, 2.2], None, None, id="two points"),
        pytest.param([2.3, 2.2, 2.4], RATES[1], None, id="three points"),
    ],
)
def test_no_rule_answers_at_an_edge(losses, minimum, valley):
    made = smooth(losses)
    assert made.suggestions() == {"minimum": minimum, "steepest": None, "valley": valley}


def test_noise_on_the_first_losses_does_not_make_the_steepest_place():
    losses = [2.0, 3.0, 1.0, *[2.0] * 40, *np.linspace(2.0, 1.0, 40), *[1.0] * 20]
    assert RATES[43] <= curve(losses).steepest() <= RATES[83]


def test_a_tail_of_nan_is_no_point_and_its_edge_no_minimum():
    made = curve([*FALLING, math.nan])
    assert made.diverged_at == RATES[100]
    assert made.losses == FALLING
    assert made.minimum() is None
    made = curve([*bowl(1e-3), math.inf])
    assert made.minimum() == curve(bowl(1e-3)).minimum()


def test_above_four_times_the_best_is_diverged_and_no_point():
    diverged = curve([1.0] * 50 + [61.0])  # a mean of 1 + 60 / 18.5: one loss has about a 20th
    assert diverged.diverged_at == RATES[50]
    assert diverged.losses == [1.0] * 50
    assert curve([1.0] * 50 + [50.0]).diverged_at is None
    assert curve([-1.0] * 50 + [9.0]).diverged_at is None  # no multiple of -1 is worse
