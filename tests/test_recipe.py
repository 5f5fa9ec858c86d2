import dataclasses
import json
import subprocess
import sys

import pytest

from ultimus_ignite.recipe import RECIPES, RangeTest, Recipe, RecipeError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 10**30),
        ("batch_size", 10**9 + 1),
        ("accumulation_steps", 10**30),
        ("checkpoint_every", 10**30),
        ("seed", 2**63),
        ("batch_size", 0),
        ("accumulation_steps", 0),
        ("crop_padding", -1),
        ("crop_padding", 32),
        ("seed", -1),
        ("max_lr", 0.0),
        ("max_lr", float("nan")),
        ("max_lr", float("inf")),
        ("div_factor", -1.0),
        ("final_div_factor", 0.0),
        ("max_loss_ratio", 1.0),
        ("max_loss_ratio", float("inf")),
        ("weight_decay", float("nan")),
        ("div_factor", float("inf")),
        ("device", ""),
        ("device", "gpu0"),
        ("device", "cuda:"),
        ("device", "cuda:1000"),
        ("checkpoint_every", 0),
        ("max_grad_norm", 0.0),
        ("pct_start", 1.1),
        ("flip", float("nan")),
        ("cutout", -0.1),
        ("cutout_size", 33),
        ("image_size", 7),
        ("image_size", 4097),
        ("grey", 2.0),
        ("val_fraction", 1.0),
        ("weight_decay", -0.1),
        ("label_smoothing", 1.5),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(RecipeError, match=field):
        Recipe(**{field: value})


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:15", "mps", "xpu:0", "meta"])
def test_a_device_that_may_exist_is_left_to_torch(name):
    assert Recipe(device=name).device == name


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"start_lr": 0.0}, "0 < start_lr < end_lr must hold, got 0.0 and 0.04"),
        ({"start_lr": 0.1}, "got 0.1 and 0.04"),
        ({"end_lr": float("inf")}, "got 0.004 and inf"),
        ({"end_lr": float("nan")}, "got 0.004 and nan"),
        ({"iterations": 2}, "iterations must be at least 3, got 2"),
        ({"iterations": 10**30}, "iterations must be at most 1,000,000,000"),
    ],
)
def test_a_range_test_that_cannot_be_made_is_refused(rates, message):
    with pytest.raises(RecipeError, match=message):
        RangeTest(**rates)


def test_recipes_are_plain_data():
    for recipe in RECIPES.values():
        assert Recipe(**json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe


def test_the_command_line_loads_neither_torch_nor_ignite():
    code = (
        "import sys, ultimus_ignite.cli, ultimus_ignite.data.sources\n"
        "from ultimus_ignite.commands import arguments, train\n"
        "arguments.parse_recipe(train.TrainArguments, 'train-cifar', ['--epochs', '3'])\n"
        "print({'torch', 'ignite', 'matplotlib', 'numpy'} & set(sys.modules))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "set()\n"
