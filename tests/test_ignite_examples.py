"""Situations of Ignite's own examples: what these handlers leave, beside Ignite's and a count."""

import csv
import importlib
import io
from pathlib import Path

import pytest
import torch
from ignite_examples import dcgan, mnist, reinforce

from ultimus_ignite.handlers import CheckpointStore
from ultimus_ignite.handlers.support.history_csv import read_csv

FOLDER = Path(__file__).parent / "ignite_examples"
NAMES = ("cifar10", "dcgan", "mnist", "mnist_save_resume", "reinforce", "siamese")


def run(name, folder, **options):
    folder.mkdir(exist_ok=True)
    file = io.StringIO()
    task = importlib.import_module(f"ignite_examples.{name}").main(folder, file, **options)
    task.text = file.getvalue()
    return task


def run_both(name, tmp_path):
    return run(f"{name}_stock", tmp_path / "stock"), run(f"{name}_ours", tmp_path / "ours")


def crash_and_resume(name, folder, at):
    with pytest.raises(RuntimeError, match="the machine is gone"):
        run(name, folder, crash_at=at)
    torch.manual_seed(99)  # another process would have another state
    return run(name, folder)


def assert_equal(one, other):
    """The same tensors and numbers, bit for bit."""
    one, other = (
        each.state_dict() if hasattr(each, "state_dict") else each for each in (one, other)
    )
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        for pair in zip(one, other, strict=True):
            assert_equal(*pair)
    else:
        assert one == other


def assert_no_hooks(*optimizers):
    for optimizer in optimizers:
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
        assert not hasattr(optimizer, "found_inf")


def column(rows, name):
    return [row[name] for row in rows]


def means(values, epochs):
    length = len(values) // epochs
    return [sum(values[i : i + length]) / length for i in range(0, len(values), length)]


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def lines_of_wiring(path):
    lines = (line.strip() for line in path.read_text().splitlines())
    return sum(bool(line) and not line.startswith("#") for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_our_wiring_is_shorter(name):
    ours = lines_of_wiring(FOLDER / f"{name}_ours.py")
    assert ours < lines_of_wiring(FOLDER / f"{name}_stock.py")


def test_mnist(tmp_path):
    stock, ours = run_both("mnist", tmp_path)
    assert_equal(ours.model, stock.model)
    assert ours.outputs == stock.outputs
    rows = read_csv(tmp_path / "ours" / "history.csv")
    assert rows == ours.history.rows
    assert column(rows, "running_loss") == pytest.approx(means(ours.outputs, mnist.EPOCHS))
    for name in ("train_accuracy", "train_nll", "val_accuracy", "val_nll"):
        assert column(rows, name) == column(stock.rows, name)
    for row in rows:
        assert f"EPOCH: {row['epoch']} (LR: 0.1)" in ours.text
        for name in ("train", "val"):
            accuracy, nll = row[f"{name}_accuracy"], row[f"{name}_nll"]
            assert f"\n{name}: Accuracy: {accuracy:.2%}, nll: {nll:.4f}\n" in ours.text
    assert_no_hooks(ours.optimizer)


def test_cifar10(tmp_path):
    stock, ours = run_both("cifar10", tmp_path)
    assert_equal(ours.model, stock.model)
    rows = ours.history.rows
    counts, losses, hits = (
        [float(output[name]) for output in ours.outputs] for name in ("count", "loss", "correct")
    )
    assert len(set(counts)) > 1  # the mean over samples is not that over iterations
    sums = means([loss * count for loss, count in zip(losses, counts, strict=True)], len(rows))
    samples = means(counts, len(rows))
    expected = [total / count for total, count in zip(sums, samples, strict=True)]
    assert column(rows, "train_loss") == pytest.approx(expected)
    expected = [right / of for right, of in zip(means(hits, len(rows)), samples, strict=True)]
    assert column(rows, "train_accuracy") == pytest.approx(expected)
    assert ours.history.losses == losses
    assert column(rows, "val_accuracy") == ours.scores == stock.scores
    best = ours.scores.index(max(ours.scores))
    assert best != len(rows) - 1  # the last epoch would be no evidence
    assert_equal(ours.best_weights, ours.weights[best])
    assert_equal(ours.best_weights, stock.best_weights)
    assert_no_hooks(ours.optimizer)


@pytest.mark.parametrize("at", [10, 25, 31])
def test_cifar10_resumes(tmp_path, at):
    whole = run("cifar10_ours", tmp_path / "whole")
    resumed = crash_and_resume("cifar10_ours", tmp_path / "resumed", at)
    for name in ("model", "optimizer", "best_weights"):
        assert_equal(getattr(resumed, name), getattr(whole, name))
    assert without_seconds(resumed.history.rows) == without_seconds(whole.history.rows)
    assert resumed.history.rates == whole.history.rates
    assert resumed.history.losses == whole.history.losses


def test_dcgan(tmp_path):
    stock, ours = run_both("dcgan", tmp_path)
    for name in ("generator", "critic", "optimizer_g", "optimizer_d"):
        assert_equal(getattr(ours, name), getattr(stock, name))
    rows = read_csv(tmp_path / "ours" / "history.csv")
    measured = [name for name in rows[0] if rows[0][name] is not None]
    expected = [f"train_{name}" for name in dcgan.COLUMNS]
    assert measured == ["epoch", "iteration", "lr", "seconds", *expected]
    for name in dcgan.COLUMNS:
        values = [output[name] for output in ours.outputs]
        assert column(rows, f"train_{name}") == pytest.approx(means(values, dcgan.EPOCHS))
        assert f" {name}={rows[-1][f'train_{name}']:.5f}" in ours.text
    _, saved = CheckpointStore(tmp_path / "ours" / "checkpoints").load_newest()
    assert_equal(saved["generator"], ours.generator)
    assert_equal(saved["critic"], ours.critic)
    assert_no_hooks(ours.optimizer_g, ours.optimizer_d)


def test_siamese(tmp_path):
    stock, ours = run_both("siamese", tmp_path)
    assert_equal(ours.model, stock.model)
    rows = ours.history.rows
    assert column(rows, "train_loss") == pytest.approx(means(ours.outputs, len(rows)))
    for name in ("test_loss", "test_accuracy"):
        assert column(rows, name) == column(stock.rows, name)
    first, second, is_same = ours.test_loader.dataset.tensors
    with torch.no_grad():
        is_right = (ours.model(first, second) > 0) == is_same
    assert rows[-1]["test_accuracy"] == is_right.double().mean().item()
    assert (tmp_path / "ours" / "curves.png").stat().st_size
    assert_no_hooks(ours.optimizer)


def test_reinforce(tmp_path):
    stock, ours = run_both("reinforce", tmp_path)
    assert_equal(ours.policy, stock.policy)
    assert ours.lengths == stock.lengths
    assert len(set(ours.lengths)) > 1
    rows = ours.history.rows
    assert column(rows, "epoch") == list(range(1, reinforce.EPISODES + 1))
    ends = column(rows, "iteration")
    assert ends == [sum(ours.lengths[: i + 1]) for i in range(len(ends))]
    assert column(rows, "train_reward") == [1.0] * len(rows)
    with (tmp_path / "stock" / "history.csv").open(newline="") as table:
        theirs = [float(row["train_probability"]) for row in csv.DictReader(table)]
    assert column(rows, "train_probability") == pytest.approx(theirs)
    assert f"running reward {ours.trainer.state.running_reward:.2f}" in ours.text
    assert_no_hooks(ours.optimizer)


@pytest.mark.parametrize("at", [1, 2, 7])
def test_reinforce_resumes_between_episodes(tmp_path, at):
    whole = run("reinforce_ours", tmp_path / "whole")
    resumed = crash_and_resume("reinforce_ours", tmp_path / "resumed", at)
    assert_equal(resumed.policy, whole.policy)
    assert_equal(resumed.optimizer, whole.optimizer)
    assert resumed.lengths == whole.lengths[at - 1 :]
    for name in ("epoch", "iteration", "running_reward"):
        assert getattr(resumed.trainer.state, name) == getattr(whole.trainer.state, name)
    assert without_seconds(resumed.history.rows) == without_seconds(whole.history.rows)


@pytest.mark.parametrize("at", [3, 11, 18, 30])  # before a save, at an epoch's start, in it, last
def test_mnist_save_resume(tmp_path, at):
    whole = run("mnist_save_resume_ours", tmp_path / "whole")
    resumed = crash_and_resume("mnist_save_resume_ours", tmp_path / "resumed", at)
    assert_equal(resumed.model, whole.model)
    assert_equal(resumed.optimizer, whole.optimizer)
    assert resumed.trainer.state.iteration == whole.trainer.state.iteration
    bars = [line.split(":")[0] for line in whole.text.splitlines() if "Loss" in line]
    assert bars[-1] in resumed.text  # the mean of the epoch that was cut off, too
    assert_no_hooks(resumed.optimizer)


def test_mnist_save_resume_with_ignites_handlers_runs(tmp_path):
    task = crash_and_resume("mnist_save_resume_stock", tmp_path, 18)
    assert task.trainer.state.iteration == 30
