import fcntl
import io
import os
import pty
import re
import struct
import termios

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_evaluator
from ignite.metrics import Accuracy

from ultimus_ignite.handlers import BatchLogger
from ultimus_ignite.handlers.support import display

SEED_BAR = re.compile(
    r"Batch_id=97 Loss=\d+\.\d{5} Accuracy=\d+\.\d{2}%: 100%\|█{10}\| 98/98 "
    r"\[\d\d:\d\d<00:00, +\d+\.\d\dit/s\]"
)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def train(file, *, epochs=2, length=98, log_path=None, evaluator=None, stop_after=None):
    """Losses i/10 with 3 right of 10 in every batch but the last of an epoch, 2 of 4."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.856635533445111e-05)

    def step(engine, batch):
        last = engine.state.iteration % length == 0
        return {
            "loss": torch.tensor(engine.state.iteration / 10),
            "correct": torch.tensor(2 if last else 3),
            "count": 4 if last else 10,
        }

    trainer = Engine(step)
    logger = BatchLogger(optimizer, file=file, log_path=log_path).attach(trainer, evaluator)
    if evaluator is not None:
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
    if stop_after:
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED(once=stop_after), lambda: trainer.terminate()
        )
    trainer.run(range(length), max_epochs=epochs)
    return logger


def evaluator_with(**metrics):
    evaluator = Engine(lambda engine, batch: None)
    evaluator.add_event_handler(Events.COMPLETED, lambda e: e.state.metrics.update(metrics))
    return evaluator


def test_the_seeds_log_to_the_character():
    file = io.StringIO()
    train(file, evaluator=evaluator_with(loss=2.03124, accuracy=0.2345, count=10000))
    lines = file.getvalue().split("\n")
    assert lines[0] == "EPOCH: 1 (LR: 1.856635533445111e-05)"
    assert SEED_BAR.fullmatch(lines[1])
    assert lines[2:5] == ["", "Test set: Average loss: 2.0312, Accuracy: 2345/10000 (23.45%)", ""]
    assert lines[5].startswith("EPOCH: 2 ")
    assert len(lines) == 11  # two epochs of five lines, and what follows the last newline


def test_loss_and_accuracy_are_means_over_samples():
    file = io.StringIO()
    train(file, epochs=1, length=3)
    loss = (0.1 * 10 + 0.2 * 10 + 0.3 * 4) / 24
    assert f"Batch_id=2 Loss={loss:.5f} Accuracy={8 / 24:.2%}: 100%" in file.getvalue()


def test_a_bare_loss_will_do():
    file = io.StringIO()
    trainer = Engine(lambda engine, batch: float(batch))
    BatchLogger(file=file).attach(trainer)
    trainer.run([1.0, 2.0], max_epochs=1)
    assert file.getvalue().startswith("EPOCH: 1\nBatch_id=1 Loss=1.50000: 100%|")


def test_a_terminal_has_one_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(display, "BAR_INTERVAL", 0.0)
    file = Terminal()
    train(file, epochs=1, length=20)
    drawings = [text for text in file.getvalue().split("\r") if "Batch_id" in text]
    assert len(drawings) >= 20
    assert drawings[-1].count("\n") == 1  # only the last one stands


def test_without_a_terminal_no_control_characters_and_a_line_an_epoch(monkeypatch):
    plain, dumb = io.StringIO(), Terminal()
    train(plain, epochs=3)
    monkeypatch.setenv("TERM", "dumb")
    train(dumb, epochs=3)
    for text in (plain.getvalue(), dumb.getvalue()):
        assert not set(text) & {"\r", "\x1b"}
        assert text.count("Batch_id=") == 3


def test_a_long_epoch_gives_a_line_every_interval(monkeypatch):
    monkeypatch.setattr(display, "LINE_INTERVAL", 0.0)
    file = io.StringIO()
    train(file, epochs=1, length=5)
    assert [f"Batch_id={i} " in file.getvalue() for i in range(5)] == [True] * 5


def test_a_stream_without_unicode_gets_ascii():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    train(file, epochs=1, length=3)
    file.seek(0)
    assert "100%|##########| 3/3" in file.read()


def test_the_log_file_holds_the_plain_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    path = tmp_path / "not" / "made" / "yet.txt"
    train(Terminal(), epochs=2, log_path=path)
    text = path.read_text(encoding="utf-8")
    assert SEED_BAR.search(text)
    assert len(text.splitlines()) == 4
    assert not set(text) & {"\r", "\x1b"}


def test_a_reader_that_goes_away_does_not_end_the_run():
    read_end, write_end = os.pipe()
    os.close(read_end)
    file = os.fdopen(write_end, "w", buffering=1)
    train(file, epochs=2, length=3)
    with pytest.raises(BrokenPipeError):
        file.close()


def test_a_run_that_is_cut_off_closes_its_bar_and_goes_on(monkeypatch):
    file = io.StringIO()
    cut = train(file, length=4, stop_after=2)
    assert "Batch_id=1 Loss=0.15000" in file.getvalue()
    state = cut.state_dict()

    resumed_file = io.StringIO()
    resumed = BatchLogger(file=resumed_file)
    resumed.load_state_dict(state)
    trainer = Engine(
        lambda engine, batch: {
            "loss": engine.state.iteration / 10,
            "correct": 2 if engine.state.iteration == 4 else 3,
            "count": 4 if engine.state.iteration == 4 else 10,
        }
    )
    resumed.attach(trainer)
    trainer.load_state_dict({"iteration": 2, "epoch_length": 4, "max_epochs": 1})
    trainer.run(iter(int, 1), max_epochs=1, epoch_length=4)

    unbroken_file = io.StringIO()
    train(unbroken_file, epochs=1, length=4)
    lines = [f.getvalue().splitlines() for f in (resumed_file, unbroken_file)]
    assert lines[0][0] == lines[1][0]  # the epoch's own rate, not the one it was resumed at
    assert lines[0][1].split(" [")[0] == lines[1][1].split(" [")[0]


def test_an_evaluation_in_the_middle_of_an_epoch_keeps_its_sums():
    file = io.StringIO()
    evaluator = evaluator_with(accuracy=0.5)
    trainer = Engine(lambda engine, batch: float(batch))
    BatchLogger(file=file).attach(trainer, evaluator)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: evaluator.run([0]))
    trainer.run([1.0, 2.0, 3.0, 4.0], max_epochs=1)
    assert "\nTest set: Accuracy: 50.00%\n" in file.getvalue()
    assert "Batch_id=3 Loss=2.50000: 100%" in file.getvalue()


@pytest.mark.parametrize("unknown", [1, 4])
def test_an_accuracy_that_one_iteration_does_not_know_is_left_out(unknown, monkeypatch):
    monkeypatch.setattr(display.Display, "is_due", lambda self: True)  # a reading an iteration
    file = io.StringIO()

    def step(engine, batch):
        i = engine.state.iteration
        return {"loss": 1.0, "count": 2} | ({} if i == unknown else {"correct": 1})

    trainer = Engine(step)
    BatchLogger(file=file).attach(trainer)
    trainer.run(iter(int, 1), max_epochs=2, epoch_length=4)
    first, second = file.getvalue().split("EPOCH: 2")
    assert "Accuracy" not in first.splitlines()[-1]
    assert "Accuracy=50.00%" in second.splitlines()[-1]


# In anyone's script


def test_other_metrics_follow_under_their_own_names():
    file = io.StringIO()
    metrics = {"nll": torch.tensor([1.0]), "Accuracy": np.float64(0.5), "matrix": torch.eye(2)}
    train(file, epochs=1, length=3, evaluator=evaluator_with(loss=2.0, **metrics))
    assert "\nTest set: Average loss: 2.0000, nll: 1.0000, Accuracy: 0.5000\n" in file.getvalue()


def test_several_evaluators_each_have_a_line():
    file = io.StringIO()
    evaluators = {"train": evaluator_with(loss=1.0), "val": evaluator_with(matrix=torch.eye(2))}
    trainer = Engine(lambda engine, batch: 1.0)
    BatchLogger(file=file).attach(trainer, evaluators)
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: [each.run([0]) for each in evaluators.values()] and None
    )
    trainer.run([0])
    assert "\ntrain: Average loss: 1.0000\n" in file.getvalue()
    assert "\nval: no scalar metric\n" in file.getvalue()


def test_metrics_that_are_computed_after_it_was_attached_are_in_the_line():
    file = io.StringIO()
    trainer, evaluator = Engine(lambda engine, batch: 1.0), Engine(lambda engine, batch: None)
    BatchLogger(file=file).attach(trainer, evaluator)
    evaluator.add_event_handler(Events.COMPLETED, lambda e: e.state.metrics.update(loss=0.5))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
    trainer.run([0])
    assert "Test set: Average loss: 0.5000" in file.getvalue()


def test_an_evaluator_alone_gets_a_bar():
    file = io.StringIO()
    model = torch.nn.Linear(2, 3)
    evaluator = create_supervised_evaluator(model, metrics={"accuracy": Accuracy()})
    BatchLogger(file=file).attach(evaluator)
    batches = [(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))] * 5
    for _ in range(2):
        evaluator.run(batches)
    lines = file.getvalue().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("Batch_id=4: 100%|") for line in lines)


def test_an_accuracy_that_is_no_share_is_not_written_as_one():
    file = io.StringIO()
    train(file, epochs=1, length=3, evaluator=evaluator_with(accuracy=60.0, count=10))
    assert "%)" not in file.getvalue()
    assert "accuracy: 60.0000" in file.getvalue()


@pytest.mark.parametrize("skip", [False, True])
def test_an_epoch_that_is_ended_early_keeps_to_itself(skip):
    file = io.StringIO()
    trainer = Engine(lambda engine, batch: float(engine.state.iteration))
    BatchLogger(file=file).attach(trainer)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda: trainer.terminate_epoch(skip)
    )
    trainer.run(range(4), max_epochs=2)
    text = file.getvalue()
    assert [line.split(":")[0] for line in text.splitlines()] == [
        "EPOCH",
        "Batch_id=1 Loss=1.50000",
        "EPOCH",
        "Batch_id=3 Loss=4.50000",
    ]


def test_the_rate_is_the_first_iterations_whatever_the_order():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.1, total_iters=0)
    file = io.StringIO()

    def step(engine, batch):
        optimizer.step()
        schedule.step()  # after it the rate is the next iteration's
        return 1.0

    trainer = Engine(step)
    BatchLogger(optimizer, file=file).attach(trainer)
    trainer.add_event_handler(
        Events.ITERATION_STARTED(once=1), lambda: optimizer.param_groups[0].update(lr=0.25)
    )
    trainer.run([0])
    assert file.getvalue().startswith("EPOCH: 1 (LR: 0.25)")


def test_a_line_of_ones_own_does_not_run_into_the_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    file = Terminal()
    trainer = Engine(lambda engine, batch: 1.0)
    logger = BatchLogger(file=file).attach(trainer)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda: logger.write("a line of one's own")
    )
    trainer.run(range(3))
    assert "\ra line of one's own\n" in file.getvalue()


def test_the_state_of_the_first_version_is_read():
    logger = BatchLogger(file=io.StringIO())
    logger.load_state_dict({"rate": None, "loss": 6.0, "correct": 2, "samples": 4, "batches": 2})
    trainer = Engine(lambda engine, batch: {"loss": 3.0, "correct": 2, "count": 2})
    logger.attach(trainer)
    trainer.load_state_dict({"iteration": 2, "epoch_length": 3, "max_epochs": 1})
    trainer.run(iter(int, 1), max_epochs=1, epoch_length=3)
    assert "Batch_id=2 Loss=2.00000 Accuracy=66.67%" in logger._display.file.getvalue()


def test_a_bar_that_an_exception_left_open_is_closed_by_the_next_run(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    file, fail = Terminal(), [2]
    trainer = Engine(lambda engine, batch: 1 / 0 if engine.state.iteration in fail else 1.0)
    trainer.logger.disabled = True
    logger = BatchLogger(file=file).attach(trainer)
    with pytest.raises(ZeroDivisionError):
        trainer.run(range(3))
    left = logger._display._bar
    fail.clear()
    trainer.run(range(3))  # Ignite's first run after an exception only forgets it
    trainer.run(range(3))
    assert left.disable  # tqdm's word for closed
    assert left not in left._instances
    assert file.getvalue().count("EPOCH: 1\n") == 2  # the next run has its own


# How it looks


def drawn_at(columns, monkeypatch, total=98):
    """The last drawing of a bar in a terminal of that width."""
    monkeypatch.setenv("TERM", "xterm")
    terminal, other_end = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    file = Terminal()
    file.fileno = lambda: terminal
    trainer = Engine(lambda engine, batch: {"loss": 2.62711, "correct": 3, "count": 20, "F1": 0.5})
    BatchLogger(file=file).attach(trainer)
    trainer.run(iter(range(97)) if total is None else range(98))
    os.close(terminal)
    os.close(other_end)
    return [text for text in file.getvalue().split("\r") if "=" in text][-1].rstrip("\n")


@pytest.mark.parametrize("total", [98, None])
@pytest.mark.parametrize("columns", [*range(14, 110, 6), 50])
def test_no_number_is_cut_however_narrow_the_terminal(columns, total, monkeypatch):
    text = drawn_at(columns, monkeypatch, total)
    assert len(text) <= columns
    for word in text.split():
        assert re.fullmatch(
            r"Batch_id=9\d|Loss=2.62711|Accuracy=15.00%|F1=0.50000:?|(98/98|97/\?)"
            r"|\[\d\d:\d\d<\S+,|\d+\.\d\dit/s\]|100%\|\S+\||\d+it|\[\d\d:\d\d,",
            word,
        ), text


def test_the_bar_goes_first_then_the_times_then_the_batch(monkeypatch):
    texts = [drawn_at(columns, monkeypatch) for columns in (120, 100, 92, 70, 53, 45, 30)]
    assert [("█" in t, "it/s" in t, "98/98" in t, "Batch_id" in t) for t in texts] == [
        (True, True, True, True),
        (True, True, True, True),  # a bar of a few cells
        (False, True, True, True),
        (False, False, True, True),
        (False, False, False, True),
        (False, False, False, False),
        (False, False, False, False),
    ]
    assert texts[-2:] == ["Loss=2.62711 Accuracy=15.00% F1=0.50000", "Loss=2.62711 Accuracy=15.00%"]


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_the_rate_counts_the_first_batch(kind, monkeypatch):
    """A clock that only the step moves, half a second each."""
    monkeypatch.setenv("TERM", "xterm")
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    file = kind()
    evaluator = evaluator_with(loss=1.0)

    def step(engine, batch):
        now[0] += 0.5
        return 1.0

    for epoch_length in (1, 4):
        trainer = Engine(step)
        with BatchLogger(file=file).attach(trainer, evaluator):
            trainer.add_event_handler(
                Events.ITERATION_COMPLETED(once=2), lambda: evaluator.run([0])
            )
            trainer.run(range(epoch_length), max_epochs=3)
    ends = re.findall(r"(\d/\d) \[00:0\d<00:0\d, +(\S+)it/s\]", file.getvalue())
    assert {batches for batches, _ in ends} >= {"1/1", "2/4", "4/4"}
    assert {rate for _, rate in ends} == {"2.00"}
