import dataclasses
import json
import subprocess
import sys

import pytest

from ultimus_ignite.recipe import RECIPES, Recipe, RecipeError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
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
        ("checkpoint_every", 0),
        ("max_grad_norm", 0.0),
        ("pct_start", 1.1),
        ("flip", float("nan")),
        ("cutout", -0.1),
        ("cutout_size", 33),
        ("grey", 2.0),
        ("val_fraction", 1.0),
        ("weight_decay", -0.1),
        ("label_smoothing", 1.5),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(RecipeError, match=field):
        Recipe(**{field: value})


def test_recipes_are_plain_data():
    for recipe in RECIPES.values():
        assert Recipe(**json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe


def test_the_command_line_loads_neither_torch_nor_ignite():
    code = (
        "import sys, ultimus_ignite.cli\n"
        "from ultimus_ignite.commands import arguments, train\n"
        "arguments.parse_recipe(train.TrainArguments, 'train-cifar', ['--epochs', '3'])\n"
        "print({'torch', 'ignite', 'matplotlib', 'numpy'} & set(sys.modules))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "set()\n"
