import csv
import dataclasses
import math
import re

import numpy as np
import pytest
from ignite.engine import Events
from PIL import Image
from torch import nn

import ultimus_ignite.build as build_module
from ultimus_ignite.cli import call
from ultimus_ignite.commands import find_lr
from ultimus_ignite.data.sources import load
from ultimus_ignite.engines import create_trainer
from ultimus_ignite.recipe import Recipe


@pytest.fixture(autouse=True)
def few_digits(monkeypatch):
    data = load("digits", "unused")
    few = dataclasses.replace(
        data, train_images=data.train_images[:300], train_labels=data.train_labels[:300]
    )
    monkeypatch.setattr(build_module, "load", lambda *spec, **options: few)


@pytest.fixture
def find(tmp_path, monkeypatch, capsys):
    """The command, in an empty folder: its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        flags = ["--data", "digits", "--device", "cpu", "--batch-size", "64", *map(str, arguments)]
        code = call(find_lr.main, "ultimus find-lr", flags)
        return code, *capsys.readouterr()

    return run


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_it_prints_each_rule_and_writes_the_curve_where_the_run_would_be(find, tmp_path):
    code, out, err = find("--iterations", 20)
    assert (code, err) == (0, "")
    number = r"(\d\.\d+|none)"
    assert re.fullmatch(
        r"data: digits, 300 training and 360 test images of 10 classes\n"
        rf"seed 1:  minimum {number}  steepest {number}  valley {number}\n"
        r"runs/classic/lr_finder\.png\n",
        out,
    )
    folder = tmp_path / "runs" / "classic"
    assert sorted(p.name for p in folder.iterdir()) == ["lr_finder.csv", "lr_finder.png"]
    rows = read(folder / "lr_finder.csv")
    rates = [float(row["lr"]) for row in rows]
    assert rates == np.geomspace(0.004, 0.04, 20).tolist()[: len(rates)]
    with Image.open(folder / "lr_finder.png") as picture:
        assert picture.size == (1080, 600)


def test_it_trains_as_the_run_would(find, tmp_path):
    """Oracle: the recipe's own trainer, its rate set by hand."""
    find("--iterations", 7, "--start-lr", 0.001, "--end-lr", 0.01, "--max-grad-norm", 0.5)
    recipe = Recipe(data="digits", device="cpu", batch_size=64, max_grad_norm=0.5)
    parts = build_module.build(recipe)
    trainer = create_trainer(
        parts.model, parts.optimizer, device="cpu", seed=recipe.seed, max_grad_norm=0.5
    )
    losses = []
    rates = iter(np.geomspace(0.001, 0.01, 7).tolist())

    def set_rate():
        rate = next(rates)
        for group in parts.optimizer.param_groups:
            group["lr"] = rate

    trainer.add_event_handler(Events.ITERATION_STARTED, set_rate)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: losses.append(trainer.state.output["loss"].item())
    )
    trainer.run(parts.stream.starting_at(0), max_epochs=1, epoch_length=7)
    rows = read(tmp_path / "runs" / "classic" / "lr_finder.csv")
    assert [float(row["loss"]) for row in rows] == losses


def test_repeats_take_the_next_seeds_and_give_each_rules_range(find, tmp_path):
    _, alone, _ = find("--iterations", 20, "--seed", 6, "--out", "alone")
    code, out, _ = find("--iterations", 20, "--seed", 5, "--repeats", 2, "--out", "both")
    assert code == 0
    data, *lines = out.splitlines()
    assert [line[:7] for line in lines[:2]] == ["seed 5:", "seed 6:"]
    assert [data, lines[1]] == alone.splitlines()[:2]
    minima = sorted(re.search(r"minimum (\S+)", line)[1] for line in lines[:2])
    assert lines[2] == f"minimum: {' to '.join(dict.fromkeys(minima))}"
    assert [line.split(":")[0] for line in lines[2:5]] == ["minimum", "steepest", "valley"]
    repeats = [row["repeat"] for row in read(tmp_path / "both" / "lr_finder.csv")]
    assert repeats == ["1"] * repeats.count("1") + ["2"] * repeats.count("2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--start-lr", 0.1, "--end-lr", 0.01], "start_lr < end_lr"),
        (["--start-lr", 0], "start_lr"),
        (["--end-lr", "nan"], "end_lr"),
        (["--iterations", 0], "iterations must be at least 3, got 0"),
        (["--repeats", 0], "repeats must be at least 1, got 0"),
        (["--iterations", "many"], "--iterations"),
        (["--device", "tpu9"], "tpu9"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(find, tmp_path, arguments, message):
    code, out, err = find(*arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"ultimus find-lr: .*{message}.*\n", err)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_nan_from_the_first_step_is_one_line(find, tmp_path, monkeypatch):
    def broken(recipe, *, num_classes):
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))
        nn.init.constant_(model[1].weight, math.nan)
        return model

    monkeypatch.setattr(build_module, "create_model", broken)
    code, out, err = find()
    assert code == 2
    assert re.fullmatch(r"data: digits, .*\n", out)
    assert re.fullmatch(r"ultimus find-lr: the loss is not finite at the first step.*\n", err)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line_at_once(find, tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "build", None)  # a call of it would be a TypeError
    (tmp_path / "file").touch()
    code, out, err = find("--iterations", 5, "--out", "file")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"ultimus find-lr: file cannot be written \(.*\): .*--out\n", err)
