"""The oracle of the schedule's check is torch's own OneCycleLR, stepped to its end."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import OneCycleLR

from ultimus_ignite.build import build
from ultimus_ignite.checks import check_schedule, usable_device
from ultimus_ignite.recipe import Recipe, RecipeError


def highest_rate(total_steps, **options):
    """The highest rate of torch's schedule with a peak of 1; None if torch cannot make it."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    try:
        schedule = OneCycleLR(
            optimizer, 1.0, total_steps=total_steps, cycle_momentum=False, div_factor=1000,
            final_div_factor=1000, **options,
        )  # fmt: skip
        rates = [optimizer.param_groups[0]["lr"]]
        for _ in range(total_steps - 1):
            optimizer.step()
            schedule.step()
            rates.append(optimizer.param_groups[0]["lr"])
    except ZeroDivisionError:
        return None
    return max(rates)


@settings(max_examples=300, deadline=None)
@given(
    total_steps=st.integers(1, 4) | st.integers(1, 60),
    pct_start=st.floats(0, 1) | st.integers(1, 60).map(lambda steps: 1 / steps),
    anneal_strategy=st.sampled_from(["linear", "cos"]),
)
@example(1, 5 / 24, "linear").via("one batch and one epoch")
@example(1, 1.0, "linear")
@example(2, 0.7, "linear")
@example(2, 1.0, "cos")
@example(3, 1e-9, "cos")
@example(10, 0.1, "linear")
def test_a_run_is_refused_if_and_only_if_its_rate_stays_below_half_of_the_peak(
    total_steps, pct_start, anneal_strategy
):
    options = {"pct_start": pct_start, "anneal_strategy": anneal_strategy}
    highest = highest_rate(total_steps, **options)
    if highest is not None and highest >= 0.5:
        check_schedule(Recipe(**options), total_steps)
    else:
        with pytest.raises(RecipeError, match=f"^in {total_steps} iteration.*--epochs"):
            check_schedule(Recipe(**options), total_steps)


def test_what_is_built_has_been_checked():
    with pytest.raises(RecipeError, match="^in 1 iteration with"):
        build(Recipe(data="digits", device="cpu", epochs=1, batch_size=2000))


def test_a_model_is_looked_up_before_the_data_are_read(tmp_path):
    with pytest.raises(RecipeError, match="^model must be one of"):
        build(Recipe(data=f"folder:{tmp_path}", device="cpu", model="Nope"))


def test_no_compiler_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/nonexistent"))
    torch.compiler.reset()
    with pytest.raises(
        RecipeError, match=r"^compile: .*compiler.*: install .* leave out --compile"
    ):
        usable_device(Recipe(device="cpu", compile=True))
