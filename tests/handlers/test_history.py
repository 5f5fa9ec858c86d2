import csv
import errno
import math
import os
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events

from ultimus_ignite.handlers import History, OneCycleScheduler
from ultimus_ignite.handlers.support.history_csv import columns, read_csv
from ultimus_ignite.handlers.support.thinned import Thinned

LENGTH = 4


def make_run(path=None):
    """Iteration i has rate i/100, loss i, i % 3 right of 4 (of 2 at the end of an epoch)."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    evaluator = Engine(lambda engine, batch: None)

    def step(engine, batch):
        i = engine.state.iteration
        return {
            "loss": torch.tensor(float(i)),
            "correct": torch.tensor(i % 3),
            "count": 2 if i % LENGTH == 0 else 4,
        }

    def set_rate(engine):
        optimizer.param_groups[0]["lr"] = engine.state.iteration / 100

    trainer = Engine(step)
    trainer.add_event_handler(Events.ITERATION_STARTED, set_rate)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
    evaluator.add_event_handler(
        Events.COMPLETED,
        lambda: evaluator.state.metrics.update(loss=0.5, accuracy=trainer.state.epoch / 10),
    )
    history = History(optimizer, path=path).attach(trainer, evaluator)
    return trainer, history


def go(trainer, epochs=3):
    trainer.run(iter(int, 1), max_epochs=epochs, epoch_length=LENGTH)


def test_rows_against_a_count_by_hand():
    trainer, history = make_run()
    go(trainer)
    row = history.rows[1]  # iterations 5, 6, 7, 8 with 4, 4, 4, 2 samples
    assert row["epoch"] == 2
    assert row["iteration"] == 8
    assert row["lr"] == 0.05
    assert row["train_loss"] == pytest.approx((5 * 4 + 6 * 4 + 7 * 4 + 8 * 2) / 14)
    assert row["train_accuracy"] == pytest.approx((2 + 0 + 1 + 2) / 14)
    assert (row["test_loss"], row["test_accuracy"]) == (0.5, 0.2)
    assert row["seconds"] > 0
    assert history.rates == [i / 100 for i in range(1, 13)]
    assert history.losses == list(range(1, 13))


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_resumed_history_is_the_unbroken_one(cut):
    whole_trainer, whole = make_run()
    go(whole_trainer)

    trainer, history = make_run()
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=cut), lambda: trainer.terminate())
    go(trainer)
    if cut % LENGTH == 0:  # terminate() at the boundary skips EPOCH_COMPLETED
        trainer.fire_event(Events.EPOCH_COMPLETED)
    states = trainer.state_dict(), history.state_dict()

    trainer, history = make_run()
    trainer.load_state_dict(states[0])
    history.load_state_dict(states[1])
    go(trainer)
    assert history.rates == whole.rates
    assert history.losses == whole.losses
    for ours, theirs in zip(history.rows, whole.rows, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_file_keeps_its_rows_if_the_run_goes_on_without_its_history(tmp_path, cut):
    path = tmp_path / "history.csv"
    trainer, _ = make_run(path)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=cut), lambda: trainer.terminate())
    go(trainer)
    before = read_csv(path) if path.exists() else []
    state = trainer.state_dict()

    trainer, history = make_run(path)
    trainer.load_state_dict(state)
    if before:
        with pytest.warns(UserWarning, match=f"after iteration {cut}: give it to the Checkpoint"):
            go(trainer)
    else:
        go(trainer)
    assert history.rows[: len(before)] == before
    kept = [row["epoch"] for row in before]
    assert [row["epoch"] for row in read_csv(path)] == [*kept, *range(cut // LENGTH + 1, 4)]


HEADER = "epoch,iteration,lr,seconds\n"


@pytest.mark.parametrize(
    "text",
    ["a,b\n1,2\n", HEADER + "1,2,3,4,5\n", HEADER + ",,,\n", HEADER + 200_000 * "1", "\x00\n",
     HEADER + "x,y,1,1\n"],
    ids=["other columns", "a surplus field", "empty fields", "a long field", "null", "no numbers"],
)  # fmt: skip
def test_a_file_of_another_kind_is_no_history(tmp_path, text):
    path = tmp_path / "history.csv"
    path.write_text(text)
    trainer, history = make_run(path)
    trainer.load_state_dict({"iteration": 4, "epoch_length": LENGTH, "max_epochs": 3})
    go(trainer)
    assert [row["epoch"] for row in history.rows] == [2, 3]


@pytest.mark.parametrize("cut", [3, 6, 10])
def test_a_long_run_is_thinned_out_and_resumes_all_the_same(monkeypatch, cut):
    all_rates, all_losses = [i / 100 for i in range(1, 13)], list(range(1, 13))
    monkeypatch.setitem(Thinned.__init__.__kwdefaults__, "limit", 5)
    trainer, whole = make_run()
    go(trainer)
    assert whole.every == 4
    assert (whole.rates, whole.losses) == (all_rates[::4], all_losses[::4])
    assert [row["lr"] for row in whole.rows] == all_rates[::LENGTH]
    test_a_resumed_history_is_the_unbroken_one(cut)


def test_the_state_can_be_loaded_with_weights_only(tmp_path):
    trainer, history = make_run()
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=6), lambda: trainer.terminate())
    go(trainer)
    torch.save(history.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = make_run()[1]
    resumed.load_state_dict(loaded)
    assert repr(resumed.state_dict() | {"seconds": 0}) == repr(loaded | {"seconds": 0})


def test_history_csv_repeats_every_digit(tmp_path):
    path = tmp_path / "history.csv"
    trainer, history = make_run(path)
    go(trainer)
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == columns("train", "test")
    assert [row[2] for row in rows] == [repr(row["lr"]) for row in history.rows]
    assert read_csv(path) == history.rows
    assert [p.name for p in tmp_path.iterdir()] == ["history.csv"]


def test_a_full_disk_warns_and_the_next_epoch_writes_every_row(tmp_path, monkeypatch):
    path = tmp_path / "history.csv"
    trainer, history = make_run(path)
    real, calls = os.fsync, iter(range(100))

    def full_once(descriptor):
        if next(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full_once)
    with pytest.warns(UserWarning, match="not written: No space left"):
        go(trainer)
    assert read_csv(path) == history.rows
    assert [p.name for p in tmp_path.iterdir()] == ["history.csv"]


def test_what_was_not_measured_is_empty(tmp_path):
    path = tmp_path / "history.csv"
    trainer = Engine(lambda engine, batch: 2.0)
    History(torch.optim.SGD([torch.zeros(1)], lr=0.1), path=path).attach(trainer)
    trainer.run(range(2), max_epochs=1)
    assert path.read_text().splitlines()[1].startswith("1,2,0.1,2.0,,,,")
    assert read_csv(path)[0]["test_accuracy"] is None


@pytest.mark.parametrize("unknown", [1, 4])
def test_an_accuracy_that_one_iteration_does_not_know_is_empty(unknown):
    def step(engine, batch):
        i = engine.state.iteration
        return {"loss": 1.0, "count": 2} | ({} if i == unknown else {"correct": 1})

    trainer = Engine(step)
    history = History(torch.optim.SGD([torch.zeros(1)], lr=0.1)).attach(trainer)
    go(trainer, epochs=2)
    assert [row["train_accuracy"] for row in history.rows] == [None, 0.5]


def test_an_epoch_without_evaluation_does_not_repeat_the_last_one():
    evaluator = Engine(lambda engine, batch: None)
    evaluator.state.metrics = {"loss": 1.0, "accuracy": 0.75}
    trainer = Engine(lambda engine, batch: 1.0)
    trainer.add_event_handler(Events.EPOCH_COMPLETED(every=2), lambda: evaluator.run([0]))
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    history = History(optimizer).attach(trainer, evaluator)
    trainer.run(range(2), max_epochs=3)
    assert [row["test_accuracy"] for row in history.rows] == [None, 0.75, None]


def test_a_second_run_starts_empty():
    trainer, history = make_run()
    go(trainer)
    go(trainer)
    assert [row["epoch"] for row in history.rows] == [1, 2, 3]


def test_a_file_that_is_no_history_is_named(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"history\.csv is not a history"):
        read_csv(path)


def test_nan_is_kept():
    trainer = Engine(lambda engine, batch: float("nan"))
    history = History(torch.optim.SGD([torch.zeros(1)], lr=0.1)).attach(trainer)
    trainer.run(range(2), max_epochs=1)
    assert math.isnan(history.rows[0]["train_loss"])


def test_validation_has_columns_of_its_own(tmp_path):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    trainer, evaluator = Engine(lambda engine, batch: 1.0), Engine(lambda engine, batch: None)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
    evaluator.add_event_handler(
        Events.COMPLETED, lambda: evaluator.state.metrics.update(loss=0.5, accuracy=0.25)
    )
    path = tmp_path / "history.csv"
    History(optimizer, path=path, evaluated="val").attach(trainer, evaluator)
    trainer.run(range(2), max_epochs=1)
    header = path.read_text().splitlines()[0]
    assert "val_loss,val_accuracy" in header
    assert "test_" not in header
    (row,) = read_csv(path)
    assert (row["val_loss"], row["val_accuracy"]) == (0.5, 0.25)


def test_anything_else_that_is_evaluated_is_refused():
    with pytest.raises(ValueError, match="test or val, got 'dev'"):
        History(torch.optim.SGD([torch.zeros(1)], lr=0.1), evaluated="dev")


# Names, shapes and order


def measuring(optimizer, **attached):
    """A trainer whose evaluators ``train`` and ``val`` measure 10 x epoch and 20 x epoch."""
    trainer = Engine(lambda engine, batch: float(engine.state.iteration))
    evaluators = {}
    for factor, name in enumerate(("train", "val"), start=1):
        evaluator = evaluators[name] = Engine(lambda engine, batch: None)
        evaluator.add_event_handler(
            Events.EPOCH_COMPLETED,
            lambda engine, f: engine.state.metrics.update(
                nll=torch.tensor([10.0 * f * trainer.state.epoch]),
                loss=np.float32(f),
                matrix=torch.eye(2),
                per_class=[0.1, 0.2],
                note="text",
                count=5,
            ),
            factor,
        )
    return trainer, evaluators


@pytest.mark.parametrize("history_first", [True, False])
@pytest.mark.parametrize("when", [Events.EPOCH_COMPLETED, Events.EPOCH_STARTED, Events.COMPLETED])
def test_every_scalar_of_every_evaluator_is_in_the_row_of_its_epoch(tmp_path, history_first, when):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    trainer, evaluators = measuring(optimizer)
    history = History(optimizer, path=tmp_path / "new" / "history.csv")

    def evaluate():
        for evaluator in evaluators.values():
            evaluator.run([0])

    if history_first:
        history.attach(trainer, evaluators)
    trainer.add_event_handler(when, evaluate)
    if not history_first:
        history.attach(trainer, evaluators)
    trainer.run(range(2), max_epochs=3)
    measured = [row for row in history.rows if row.get("val_nll") is not None]
    assert len(measured) == (1 if when is Events.COMPLETED else 3)
    for row in measured:
        assert row["train_nll"] == 10.0 * row["epoch"]
        assert row["val_nll"] == 20.0 * row["epoch"]
        assert (row["train_loss"], row["val_loss"]) == (1.0, 2.0)
    assert [row["running_loss"] for row in history.rows] == [1.5, 3.5, 5.5]
    assert not {"train_count", "val_matrix", "val_note", "val_per_class"} & set(history.rows[-1])
    rows = read_csv(tmp_path / "new" / "history.csv")
    assert [{k: v for k, v in row.items() if v is not None} for row in rows] == [
        {k: v for k, v in row.items() if v is not None} for row in history.rows
    ]


def test_the_classic_columns_come_first_and_other_names_after_them(tmp_path):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    trainer, evaluators = measuring(optimizer)
    history = History(optimizer, path=tmp_path / "history.csv").attach(trainer, evaluators["val"])
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluators["val"].run([0]))
    trainer.run(range(2))
    header = (tmp_path / "history.csv").read_text().splitlines()[0]
    assert header == ",".join([*columns("train", "test"), "test_nll"])
    assert history.rows[0]["test_nll"] == 20.0


def test_an_evaluation_after_the_run_does_not_replace_one_within():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    trainer, evaluators = measuring(optimizer)
    other = Engine(lambda engine, batch: None)
    history = History(optimizer).attach(trainer, {"val": evaluators["val"], "hold": other})
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluators["val"].run([0]))
    trainer.run(range(2), max_epochs=2)
    trainer.state.epoch = 9  # so that the same evaluator measures something else
    evaluators["val"].run([0])
    assert history.rows[-1]["val_nll"] == 40.0


def test_an_evaluation_between_two_runs_of_a_loop_belongs_to_the_epoch_before():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    trainer, evaluators = measuring(optimizer)
    history = History(optimizer).attach(trainer, {"val": evaluators["val"]})
    for epoch in range(1, 4):
        trainer.run(range(2), max_epochs=epoch)
        evaluators["val"].run([0])
    assert [row["val_nll"] for row in history.rows] == [20.0, 40.0, 60.0]


@pytest.mark.parametrize("scheduler_first", [True, False])
def test_the_rate_is_the_one_that_the_step_used_whatever_the_order(scheduler_first):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    used = []
    trainer = Engine(lambda engine, batch: used.append(optimizer.param_groups[0]["lr"]) or 1.0)
    history = History(optimizer)
    scheduler = OneCycleScheduler(optimizer, max_lr=1.0, cycle_momentum=False)
    for handler in (scheduler, history) if scheduler_first else (history, scheduler):
        handler.attach(trainer)
    trainer.run(range(5), max_epochs=2)
    assert history.rates == used
    assert [row["lr"] for row in history.rows] == [used[0], used[5]]


def test_a_step_may_fill_the_same_tensor_again():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    loss = torch.zeros(())
    trainer = Engine(lambda engine, batch: loss.fill_(batch))
    history = History(optimizer).attach(trainer)
    trainer.run([1.0, 2.0, 6.0])
    assert history.rows[0]["train_loss"] == 3.0
    assert history.losses == [1.0, 2.0, 6.0]


def test_the_state_of_the_first_version_is_read():
    trainer, history = make_run()
    history.load_state_dict(
        {
            "rows": [],
            "rates": torch.tensor([0.01, 0.02], dtype=torch.float64),
            "losses": torch.tensor([], dtype=torch.float64),
            "unfinished": {"losses": [1.0, 2.0], "correct": [1, 2], "counts": [4, 4]},
            "seconds": 1.0,
        }
    )
    trainer.load_state_dict({"iteration": 2, "epoch_length": LENGTH, "max_epochs": 3})
    go(trainer)
    whole_trainer, whole = make_run()
    go(whole_trainer)
    for ours, theirs in zip(history.rows, whole.rows, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


@pytest.mark.parametrize(
    "length", [{}, {"max_iters": 5}], ids=["terminate_epoch", "max_iters without a length"]
)
def test_every_iteration_of_a_run_that_came_to_its_end_is_in_a_row(length):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    trainer = Engine(lambda engine, batch: float(engine.state.iteration))
    history = History(optimizer).attach(trainer)
    if length:
        trainer.run(iter(range(9)), **length)
    else:
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED(event_filter=lambda _, i: i in (3, 5)),
            lambda: trainer.terminate_epoch(skip_epoch_completed=True),
        )
        trainer.run(range(9), max_epochs=2)
    means = [(row["iteration"], row["train_loss"]) for row in history.rows]
    assert means == ([(5, 3.0)] if length else [(3, 2.0), (5, 4.5)])


def test_a_batch_that_is_skipped_later_takes_no_part():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    outputs = iter([{"loss": 1.0, "correct": 1, "count": 2}, None])
    trainer = Engine(lambda engine, batch: next(outputs))
    history = History(optimizer).attach(trainer)
    trainer.run(range(2))
    assert (history.rows[0]["train_loss"], history.rows[0]["train_accuracy"]) == (1.0, 0.5)
    assert len(history.rates) == 2


def test_numbers_that_come_now_and_then_are_means_over_when_they_came():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    trainer = Engine(
        lambda engine, batch: {"errD": 1.0 * batch, "errG": 10.0 * batch if batch % 2 else None}
    )
    history = History(optimizer).attach(trainer)
    trainer.run(range(4))
    assert (history.rows[0]["train_errD"], history.rows[0]["train_errG"]) == (1.5, 20.0)


@pytest.mark.parametrize("metric", [True, np.bool_(True), torch.tensor(True), Fraction(1, 2)])
def test_any_scalar_metric_can_be_read_back(tmp_path, metric):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    trainer, evaluator = Engine(lambda engine, batch: 1.0), Engine(lambda engine, batch: None)
    history = History(optimizer, path=tmp_path / "history.csv").attach(trainer, evaluator)
    evaluator.add_event_handler(Events.COMPLETED, lambda e: e.state.metrics.update(it=metric))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
    trainer.run([0])
    assert read_csv(tmp_path / "history.csv") == history.rows
    assert history.rows[0]["test_it"] == float(metric)


def test_runs_of_one_iteration_each_are_read_anew():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    trainer = Engine(lambda engine, batch: float(batch))
    history = History(optimizer).attach(trainer)
    means = []
    for loss in (1.0, 2.0):
        trainer.run([loss])
        means.append(history.rows[0]["train_loss"])
    assert means == [1.0, 2.0]


@pytest.mark.parametrize("cut", range(1, 8))
def test_the_seconds_of_a_resumed_run_are_those_of_its_iterations(monkeypatch, cut):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def make():
        trainer = Engine(lambda engine, batch: clock.__setitem__(0, clock[0] + 1.0) or 1.0)
        return trainer, History(torch.optim.SGD([torch.zeros(1)], lr=0.1)).attach(trainer)

    states = {}
    trainer, whole = make()
    for event in (Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED):
        trainer.add_event_handler(
            event,
            lambda engine: states.update(
                {engine.state.iteration: (engine.state_dict(), whole.state_dict())}
            ),
        )
    trainer.run(range(4), max_epochs=2)
    assert [row["seconds"] for row in whole.rows] == [4.0, 4.0]
    clock[0] += 1000.0  # between the kill and the resume
    trainer, resumed = make()
    trainer.load_state_dict(states[cut][0])
    resumed.load_state_dict(states[cut][1])
    trainer.run(range(4), max_epochs=2)
    assert [row["seconds"] for row in resumed.rows] == [4.0, 4.0]
