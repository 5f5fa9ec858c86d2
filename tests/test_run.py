"""A whole run, in this process, on a few hundred of the real handwritten digits."""

import dataclasses
import json
import os
import shutil
import signal

import pytest
import safetensors.torch
import torch
from ignite.engine import Engine, Events
from tensorboard_reader import times_written
from torch.optim.lr_scheduler import OneCycleLR

import ultimus_ignite.training as module
from ultimus_ignite.data.image_data import ImageData
from ultimus_ignite.data.sources import load
from ultimus_ignite.errors import DataError, Interrupted
from ultimus_ignite.handlers import CheckpointError, CheckpointStore
from ultimus_ignite.recipe import Recipe, RecipeError
from ultimus_ignite.run_directory import RunDirectory

RECIPE = Recipe(data="digits", epochs=3, batch_size=64, device="cpu")


@pytest.fixture(autouse=True, scope="module")
def few_digits():
    data = load("digits", "unused")
    few = dataclasses.replace(
        data,
        train_images=data.train_images[:300],
        train_labels=data.train_labels[:300],
        test_images=data.test_images[:100],
        test_labels=data.test_labels[:100],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ultimus_ignite.build.load", lambda *spec, **options: few)
        yield few


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """History and directory of a finished run, to compare with. Left as it is."""
    return train(tmp_path_factory.mktemp("unbroken") / "run")


@pytest.fixture
def finished(tmp_path, unbroken):
    """The folder of a finished run, to go on with."""
    return shutil.copytree(unbroken[1].path, tmp_path / "run")


def train(path, recipe=RECIPE, *, resume=False):
    run = module.train(recipe, out=path, resume=resume)
    return run.history, run.directory


def weights(directory):
    return safetensors.torch.load_file(directory.model)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def without_seconds(history):
    return [{**row, "seconds": None} for row in history.rows]


def test_every_rate_equals_a_bare_torch_schedule(unbroken):
    history, _ = unbroken
    optimizer = torch.optim.Adam([torch.zeros(1)])
    schedule = OneCycleLR(
        optimizer, RECIPE.max_lr, epochs=3, steps_per_epoch=5, pct_start=5 / 24,
        anneal_strategy="linear", cycle_momentum=False, div_factor=1000, final_div_factor=1000,
    )  # fmt: skip
    for i, rate in enumerate(history.rates):
        assert rate == optimizer.param_groups[0]["lr"]
        optimizer.step()
        if i < 14:
            schedule.step()
    assert len(history.rates) == 15


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path, unbroken):
    others = [train(tmp_path / str(s), dataclasses.replace(RECIPE, seed=s)) for s in (1, 2)]
    runs = [unbroken, *others]
    assert same(weights(runs[0][1]), weights(runs[1][1]))
    assert not same(weights(runs[0][1]), weights(runs[2][1]))
    assert without_seconds(runs[0][0]) == without_seconds(runs[1][0])


@pytest.mark.parametrize("cut", [1, 5, 7, 10, 14])
def test_a_run_cut_off_anywhere_ends_as_the_unbroken_one(tmp_path, monkeypatch, unbroken, cut):
    check_resume(tmp_path, monkeypatch, cut, RECIPE, unbroken)


def check_resume(tmp_path, monkeypatch, cut, recipe, unbroken=None, damage=lambda run: None):
    whole, whole_directory = unbroken or train(tmp_path / "whole", recipe)

    def build(recipe, **options):
        parts = real(recipe, **options)
        parts.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=cut), cut_off)
        return parts

    def cut_off():
        raise KeyboardInterrupt

    real = module.build
    with monkeypatch.context() as patch:
        patch.setattr(module, "build", build)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", recipe)
    assert RunDirectory(tmp_path / "cut").read_status()["status"] == "interrupted"
    damage(tmp_path / "cut")
    history, directory = train(tmp_path / "cut", recipe, resume=True)
    assert same(weights(directory), weights(whole_directory))
    assert without_seconds(history) == without_seconds(whole)
    assert history.rates == whole.rates
    assert history.losses == whole.losses
    assert_written_once(directory, history)


def assert_written_once(directory, history):
    """Every result of every epoch, and of the run, is in TensorBoard's files exactly once."""
    results = history.rows[0].keys() - {"epoch", "iteration"}
    expected = {
        (f"epoch/{name}", row["epoch"]): 1
        for row in history.rows
        for name in results
        if row[name] is not None
    }
    final = [name for name in directory.read_status() if name.endswith(("_loss", "_accuracy"))]
    assert final
    expected |= {(f"final/{name}", len(history.rows)): 1 for name in final}
    assert times_written(directory.path) == expected


def test_a_failure_before_the_first_iteration_is_no_run_that_goes_on(tmp_path, monkeypatch):
    def full(parts):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ultimus_ignite.lifecycle.run_state.describe", full)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_an_evaluation_loses_nothing(
    tmp_path, monkeypatch, unbroken, number
):
    whole, whole_directory = unbroken

    def build(recipe, **options):
        parts = real(recipe, **options)

        def interrupt():
            if parts.trainer.state.epoch == 2:
                signal.raise_signal(number)

        parts.evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=1), interrupt)
        return parts

    real = module.build
    with monkeypatch.context() as patch:
        patch.setattr(module, "build", build)
        with pytest.raises(Interrupted, match=number.name):
            train(tmp_path / "cut")
    history, directory = train(tmp_path / "cut", resume=True)
    assert same(weights(directory), weights(whole_directory))
    assert without_seconds(history) == without_seconds(whole)


def test_a_finished_run_is_left_as_it_is(finished, capsys):
    files = sorted(finished.rglob("*"))
    before = [(path, path.stat().st_mtime_ns) for path in files if path.name != ".lock"]
    train(finished, resume=True)
    assert "finished" in capsys.readouterr().out
    assert [(path, path.stat().st_mtime_ns) for path, _ in before] == before
    assert sorted(finished.rglob("*")) == files


def only_checkpoints(run):
    for path in [*run.iterdir()]:
        if path.is_file():
            path.unlink()


def without(name):
    return lambda run: (run / name).unlink()


def cut(name, share):
    return lambda run: os.truncate(run / name, int(share * (run / name).stat().st_size))


DAMAGES = {
    "only checkpoints": only_checkpoints,
    "no status": without("status.json"),
    "empty status": cut("status.json", 0),
    "cut recipe": cut("recipe.json", 0.3),
    "no model": without("model.safetensors"),
    "cut model": cut("model.safetensors", 0.7),
    "cut history": cut("history.csv", 0.5),
    "no curves": without("curves.png"),
}


@pytest.fixture
def no_training(monkeypatch):
    """Makes a step of any trainer an error."""

    def build(recipe, **options):
        return dataclasses.replace(
            real(recipe, **options), trainer=Engine(lambda engine, batch: 1 / 0)
        )

    real = module.build
    monkeypatch.setattr(module, "build", build)


def content(run):
    """What a run leaves behind, but for the log, the picture's metadata and TensorBoard's files."""
    names = ("history.csv", "model.safetensors", "recipe.json")
    status = json.loads((run / "status.json").read_text()) | {"pid": None}
    checkpoints = {path: path.stat().st_mtime_ns for path in (run / "checkpoints").iterdir()}
    return [(run / name).read_bytes() for name in names], status, checkpoints


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_a_finished_run_lacks_is_written_again_without_training(finished, damage, capsys):
    before = content(finished)
    damage(finished)
    history, directory = train(finished, resume=True)
    assert_written_once(directory, history)
    assert content(finished) == before
    assert (finished / "curves.png").stat().st_size > 1000
    capsys.readouterr()
    train(finished, resume=True)
    assert "nothing left to do" in capsys.readouterr().out


def without_events(run):
    for path in run.glob("events*"):
        path.unlink()


def cut_all(run):
    for name in ("status.json", "recipe.json", "history.csv"):
        cut(name, 0.3)(run)


@pytest.mark.parametrize("damage", [only_checkpoints, without_events, cut_all])
def test_a_run_with_damaged_files_is_resumed_from_its_checkpoint(
    tmp_path, monkeypatch, unbroken, damage
):
    check_resume(tmp_path, monkeypatch, 12, RECIPE, unbroken, damage)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 4}, "epochs: 3 -> 4"),
        ({"max_lr": 0.01}, "max_lr"),
        ({"seed": 9}, "seed: 1 -> 9"),
    ],
)
def test_resuming_with_another_recipe_names_the_difference(finished, change, message):
    with pytest.raises(CheckpointError, match=message):
        train(finished, dataclasses.replace(RECIPE, **change), resume=True)


def test_final_weights_without_a_checkpoint_are_not_replaced(finished):
    shutil.rmtree(finished / "checkpoints")
    before = (finished / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="but no checkpoint: choose another --out"):
        train(finished, resume=True)
    assert (finished / "model.safetensors").read_bytes() == before


def test_extended_epochs_go_on_at_the_longer_runs_rates(tmp_path, finished, capsys):
    longer = dataclasses.replace(RECIPE, epochs=5)
    history = module.train(longer, out=finished, resume=True, extend_epochs=True).history
    whole, _ = train(tmp_path / "whole", longer)
    assert [row["epoch"] for row in history.rows] == [1, 2, 3, 4, 5]
    assert history.rates[15:] == whole.rates[15:]
    rate = repr(whole.rates[15])
    assert f"epochs: 3 -> 5: the rate of iteration 16 is {rate}" in capsys.readouterr().out
    train(finished, longer, resume=True)  # finished: nothing left to do
    assert "nothing left to do" in capsys.readouterr().out


def test_epochs_that_are_over_cannot_be_taken_back(finished):
    shorter = dataclasses.replace(RECIPE, epochs=2)
    with pytest.raises(RecipeError, match="above the 3 already done"):
        module.train(shorter, out=finished, resume=True, extend_epochs=True)


def test_resuming_on_other_images_is_refused(finished, monkeypatch, few_digits):
    other = dataclasses.replace(few_digits, sha256="0" * 64)
    monkeypatch.setattr("ultimus_ignite.build.load", lambda *spec, **options: other)
    same_counts = "on other data: as many images as before, but other pixels or labels; restore"
    with pytest.raises(CheckpointError, match=same_counts):
        train(finished, resume=True)


def test_resuming_after_images_were_added_or_removed_says_how_many(
    finished, monkeypatch, few_digits
):
    other = dataclasses.replace(
        few_digits,
        name="folder:/new\nplace",
        sha256="0" * 64,
        train_images=few_digits.train_images[:299],
        train_labels=few_digits.train_labels[:299],
        val_images=few_digits.test_images,
        val_labels=few_digits.test_labels,
    )
    monkeypatch.setattr("ultimus_ignite.build.load", lambda *spec, **options: other)
    with pytest.raises(CheckpointError) as error:
        train(finished, resume=True)
    assert str(error.value) == (
        f"{finished} was begun on other data: name: digits -> folder:/new place, "
        "train images: 300 -> 299, val images: 0 -> 100; restore the data, or give another --out"
    )

    path = RunDirectory(finished).description
    description = json.loads(path.read_text())
    description["data"] = {key: description["data"][key] for key in ("name", "sha256")}
    path.write_text(json.dumps(description))  # as version 0.1.0 wrote it
    not_recorded = "299 train, 100 val, 100 test images now, how many there were is not recorded"
    with pytest.raises(CheckpointError, match=not_recorded):
        train(finished, resume=True)

    path.write_text("{")
    with pytest.raises(CheckpointError, match="data_sha256"):
        train(finished, resume=True)


def test_unreadable_files_may_be_skipped_by_a_run_that_is_resumed(finished, capsys):
    train(finished, dataclasses.replace(RECIPE, skip_unreadable=True), resume=True)
    assert "nothing left to do" in capsys.readouterr().out


def test_a_run_that_fails_says_so(tmp_path, monkeypatch):
    def build(recipe, **options):
        return dataclasses.replace(
            real(recipe, **options), evaluator=Engine(lambda engine, batch: 1 / 0)
        )

    real = module.build
    monkeypatch.setattr(module, "build", build)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run")
    assert RunDirectory(tmp_path / "run").read_status()["status"] == "failed"


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bfloat16"},
        {"precision": "float16"},
        {"accumulation_steps": 3},
        {"max_grad_norm": 0.5},
        {"optimizer": "muon", "max_lr": 0.1},
    ],
    ids=str,
)
def test_every_way_to_step_resumes_bit_exactly(tmp_path, monkeypatch, changes):
    check_resume(tmp_path, monkeypatch, 7, dataclasses.replace(RECIPE, **changes))


def test_the_recipe_is_on_disk(unbroken, few_digits: ImageData):
    _, directory = unbroken
    description = json.loads(directory.description.read_text())
    assert Recipe(**description["recipe"]) == dataclasses.replace(RECIPE, **RECIPE.sizes())
    assert description["data"] == {
        "name": "digits", "sha256": few_digits.sha256, "classes": 10,
        "train": 300, "val": 0, "test": 100, "held_out": "", "notes": [],
        "class_names": list("0123456789"),
        "mean": list(few_digits.mean), "std": list(few_digits.std),
    }  # fmt: skip
    assert description["versions"]["torch"] == torch.__version__.split("+")[0]


def test_max_lr_auto_is_found_once_and_kept(tmp_path, monkeypatch):
    recipe = dataclasses.replace(RECIPE, max_lr="auto")
    history, directory = train(tmp_path / "run", recipe)
    found = directory.read_description()["recipe"]["max_lr"]
    assert 0.004 < found < 0.04
    assert max(history.rates) <= found
    assert (tmp_path / "run" / "lr_finder.png").exists()
    _, fixed_directory = train(tmp_path / "fixed", dataclasses.replace(RECIPE, max_lr=found))
    assert same(weights(directory), weights(fixed_directory))  # the search left no trace
    monkeypatch.setattr("ultimus_ignite.lifecycle.range_test.range_test", None)
    train(tmp_path / "run", recipe, resume=True)  # finished, and no second search
    directory.description.write_text('{"recipe": ')
    train(tmp_path / "run", recipe, resume=True)
    assert directory.read_description()["recipe"]["max_lr"] == found


def test_validation_images_judge_the_epochs_and_the_test_set_is_measured_once(
    tmp_path, few_digits, capsys
):
    recipe = dataclasses.replace(RECIPE, val_fraction=0.2)
    history, directory = train(tmp_path, recipe)
    assert (
        "data: digits, 240 training, 60 validation and 100 test images" in capsys.readouterr().out
    )
    log = directory.log.read_text()
    assert log.count("Validation set:") == 3
    assert log.count("Test set:") == 1
    best = max(range(3), key=lambda epoch: history.rows[epoch]["val_accuracy"])
    assert f"Epoch {best + 1} was the best" in log

    # The oracle: the best epoch's checkpoint, through a plain model and a plain sum.
    parts = module.build(recipe)
    store = CheckpointStore(directory.checkpoints)
    state = store.load(store.path(4 * (best + 1)))["model"]  # 240 / 64 is 4 batches
    parts.model.load_state_dict(state)
    assert same(weights(directory), dict(parts.model.eval().state_dict()))
    correct = sum((parts.model(x).argmax(1) == y).sum().item() for x, y in parts.test.batches)
    assert directory.read_status()["test_accuracy"] == correct / 100


@pytest.fixture
def with_validation(monkeypatch, few_digits):
    """Digits with 60 validation images of their own; ``test``: whether there is a test set."""

    def use(*, test):
        data = dataclasses.replace(
            few_digits,
            train_images=few_digits.train_images[60:],
            train_labels=few_digits.train_labels[60:],
            val_images=few_digits.train_images[:60],
            val_labels=few_digits.train_labels[:60],
            held_out="drawn by lot",
            notes=("one thing", "another"),
        )
        if not test:
            data = dataclasses.replace(data, test_images=None, test_labels=None)
        monkeypatch.setattr("ultimus_ignite.build.load", lambda *spec, **options: data)
        return data

    return use


def accuracy(model, images, labels, data):
    """Share of the images that a model is right on, normalised by hand."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (data.mean, data.std))
    x = (images.float() / 255 - mean) / std
    return (model.eval()(x).argmax(1) == labels).float().mean().item()


@pytest.mark.parametrize("test", [True, False])
def test_a_validation_set_judges_the_epochs_and_a_test_set_is_measured_once(
    tmp_path, capsys, with_validation, test
):
    data = with_validation(test=test)
    history, directory = train(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    counts = (
        "240 training, 60 validation and 100 test" if test else "240 training and 60 validation"
    )
    assert lines[0] == f"data: digits, {counts} images of 10 classes; drawn by lot"
    assert lines[1:3] == ["one thing", "another"]
    log = directory.log.read_text()
    assert log.count("Validation set:") == 3
    assert log.count("Test set:") == test
    assert {"val_loss", "val_accuracy"} < history.rows[0].keys()
    assert "test_loss" not in history.rows[0]

    best = max(range(3), key=lambda epoch: history.rows[epoch]["val_accuracy"])
    status = directory.read_status()
    model = module.build(RECIPE).model
    model.load_state_dict(weights(directory))
    judged = accuracy(model, data.val_images, data.val_labels, data)
    assert judged == pytest.approx(history.rows[best]["val_accuracy"])
    if test:
        tested = accuracy(model, data.test_images, data.test_labels, data)
        assert status["test_accuracy"] == pytest.approx(tested)
        assert "val_accuracy" not in status
    else:
        assert status["val_accuracy"] == pytest.approx(judged)
        assert status["val_loss"] == history.rows[best]["val_loss"]
        assert "test_accuracy" not in status
    recorded = json.loads(directory.description.read_text())["data"]
    assert {split: recorded[split] for split in data.counts} == data.counts
    assert (recorded["held_out"], recorded["notes"]) == ("drawn by lot", ["one thing", "another"])


def test_a_run_without_a_test_set_that_is_resumed_ends_as_the_unbroken_one(
    tmp_path, monkeypatch, with_validation
):
    with_validation(test=False)
    check_resume(tmp_path, monkeypatch, 7, RECIPE)


def test_validation_images_are_not_held_out_where_there_are_some(tmp_path, with_validation):
    with_validation(test=False)
    with pytest.raises(DataError, match="60 validation images judge the epochs already"):
        train(tmp_path / "run", dataclasses.replace(RECIPE, val_fraction=0.2))
    assert not (tmp_path / "run").exists()


def test_a_run_with_validation_that_is_resumed_ends_as_the_unbroken_one(tmp_path, monkeypatch):
    check_resume(tmp_path, monkeypatch, 7, dataclasses.replace(RECIPE, val_fraction=0.2))


def test_the_test_set_of_a_plain_run_stands_in_its_status(unbroken):
    history, directory = unbroken
    assert directory.read_status()["test_accuracy"] == history.rows[-1]["test_accuracy"]


# Early ends

STILL = dataclasses.replace(RECIPE, epochs=8, max_lr=1e-12, patience=2)  # it never gets better


@pytest.mark.parametrize("val_fraction", [0.0, 0.2])
def test_patience_ends_a_run_in_good_order(tmp_path, capsys, val_fraction):
    recipe = dataclasses.replace(STILL, val_fraction=val_fraction)
    history, directory = train(tmp_path, recipe)
    assert len(history.rows) == 3
    status = directory.read_status()
    assert (status["status"], status["ended_early"]) == ("finished", "patience")
    assert 0 < status["test_accuracy"] < 1
    line = "Ended by patience = 2 after epoch 3 of 8; epoch 1 was the best: "
    assert directory.log.read_text().count(line) == 1
    assert directory.curves.exists()
    store = CheckpointStore(directory.checkpoints)
    last = history.rows[0 if val_fraction else 2]["iteration"]
    assert same(weights(directory), store.load(store.path(last))["model"])
    assert_written_once(directory, history)
    before = content(tmp_path)
    capsys.readouterr()
    train(tmp_path, recipe, resume=True)
    assert "is finished: 3 epochs, nothing left to do" in capsys.readouterr().out
    assert content(tmp_path) == before


def test_hours_end_a_run_after_one_epoch_at_least(tmp_path):
    history, directory = train(tmp_path, dataclasses.replace(RECIPE, max_hours=1e-9))
    assert len(history.rows) == 1
    assert directory.read_status()["ended_early"] == "max_hours"


SOMETIMES = dataclasses.replace(RECIPE, epochs=5, evaluate_every=2)


def test_the_epochs_between_two_evaluations_have_none(tmp_path):
    always, always_directory = train(
        tmp_path / "always", dataclasses.replace(SOMETIMES, evaluate_every=1)
    )
    history, directory = train(tmp_path / "sometimes", SOMETIMES)
    for row, full in zip(history.rows, always.rows, strict=True):
        measured = row["epoch"] in (2, 4, 5)
        for column in ("test_loss", "test_accuracy"):
            assert row[column] == (full[column] if measured else None)
    assert same(weights(directory), weights(always_directory))
    assert directory.log.read_text().count("Test set: ") == 3


@pytest.mark.parametrize("val_fraction", [0.0, 0.2])
def test_a_run_that_ends_in_between_is_evaluated(tmp_path, capsys, val_fraction):
    hours = dataclasses.replace(SOMETIMES, max_hours=1e-9, val_fraction=val_fraction)
    history, directory = train(tmp_path, hours)
    assert len(history.rows) == 1
    judge = "val" if val_fraction else "test"
    assert history.rows[0][f"{judge}_accuracy"] is not None
    assert 0 < directory.read_status()["test_accuracy"] < 1
    assert "epoch 1 was the best: " in directory.log.read_text()
    assert_written_once(directory, history)
    before = content(tmp_path)
    capsys.readouterr()
    train(tmp_path, hours, resume=True)
    assert "is finished: 1 epochs, nothing left to do" in capsys.readouterr().out
    assert content(tmp_path) == before


def test_a_run_killed_in_between_ends_with_the_same_best_epoch(tmp_path, monkeypatch):
    check_resume(tmp_path, monkeypatch, 17, dataclasses.replace(SOMETIMES, val_fraction=0.2))


def test_a_stopped_epoch_in_between_is_not_evaluated(tmp_path, monkeypatch):
    def build(recipe, **options):
        parts = real(recipe, **options)
        parts.trainer.add_event_handler(
            Events.ITERATION_COMPLETED(once=15), lambda: signal.raise_signal(signal.SIGTERM)
        )
        return parts

    real = module.build
    with monkeypatch.context() as patch:
        patch.setattr(module, "build", build)
        with pytest.raises(Interrupted):
            train(tmp_path, SOMETIMES)
    history, _ = train(tmp_path, SOMETIMES, resume=True)
    scored = [row["epoch"] for row in history.rows if row["test_accuracy"] is not None]
    assert scored == [2, 4, 5]


def test_with_more_patience_an_ended_run_goes_on_as_if_it_had_never_ended(tmp_path):
    train(tmp_path / "ended", STILL)
    more = dataclasses.replace(STILL, patience=5)
    whole, whole_directory = train(tmp_path / "whole", more)
    history, directory = train(tmp_path / "ended", more, resume=True)
    assert len(history.rows) == 6
    assert without_seconds(history) == without_seconds(whole)
    assert same(weights(directory), weights(whole_directory))
    forever = dataclasses.replace(STILL, patience=None)
    assert len(train(tmp_path / "ended", forever, resume=True)[0].rows) == 8
    assert "ended_early" not in directory.read_status()


@pytest.mark.parametrize("place", ["after its checkpoint", "before model.safetensors"])
def test_killed_after_the_decision_a_run_ends_without_another_epoch(
    tmp_path, monkeypatch, request, place
):
    def save(store, state, *, iteration, protect=()):
        real(store, state, iteration=iteration, protect=protect)
        if iteration == 15:
            raise KeyboardInterrupt

    def write_model(run):
        raise KeyboardInterrupt

    real = CheckpointStore.save
    with monkeypatch.context() as patch:
        if place == "after its checkpoint":
            patch.setattr(CheckpointStore, "save", save)
        else:
            patch.setattr("ultimus_ignite.run.final_weights", write_model)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, STILL)
    request.getfixturevalue("no_training")
    history, directory = train(tmp_path, STILL, resume=True)
    assert len(history.rows) == 3
    assert directory.read_status()["ended_early"] == "patience"


def test_a_signal_in_the_epoch_that_ends_a_run_early_does_not_interrupt_it(tmp_path, monkeypatch):
    def build(recipe, **options):
        parts = real(recipe, **options)
        parts.trainer.add_event_handler(
            Events.ITERATION_COMPLETED(once=15), lambda: signal.raise_signal(signal.SIGHUP)
        )
        return parts

    real = module.build
    monkeypatch.setattr(module, "build", build)
    _, directory = train(tmp_path, STILL)
    assert directory.read_status()["ended_early"] == "patience"
