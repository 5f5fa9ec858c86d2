import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine, Events
from processes import call

from ultimus_ignite.handlers import GracefulStop

LENGTH, EPOCHS = 4, 3


def make(at, number=signal.SIGTERM, *, during_evaluation=False):
    """A trainer that is sent a signal in iteration ``at``, or in the evaluation after it."""
    events = []

    def step(engine, batch):
        events.append(engine.state.iteration)
        if engine.state.iteration == at and not during_evaluation:
            signal.raise_signal(number)

    def evaluation_step(engine, batch):
        if trainer.state.iteration == at and during_evaluation and batch == 1:
            signal.raise_signal(number)
        events.append(f"evaluated {batch}")

    trainer, evaluator = Engine(step), Engine(evaluation_step)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(range(3)))
    trainer.add_event_handler(Events.TERMINATE, lambda: events.append("terminated"))
    stop = GracefulStop().attach(trainer)
    return trainer, stop, events


def go(trainer):
    trainer.run(range(LENGTH), max_epochs=EPOCHS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_ends_after_the_iteration(number):
    trainer, stop, events = make(6, number)
    go(trainer)
    assert stop.received == number
    assert events[-3:] == [5, 6, "terminated"]


@pytest.mark.parametrize("during_evaluation", [False, True])
def test_the_evaluation_of_a_full_epoch_is_finished(during_evaluation):
    trainer, stop, events = make(8, during_evaluation=during_evaluation)
    go(trainer)
    assert stop.received
    assert events[-5:] == [8, "evaluated 0", "evaluated 1", "evaluated 2", "terminated"]


def test_the_last_epoch_ends_as_always():
    trainer, stop, events = make(LENGTH * EPOCHS)
    go(trainer)
    assert stop.received
    assert "terminated" not in events


@pytest.fixture
def python_interrupts():
    """Python's own SIGINT, which it leaves ignored where a shell started it in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_interrupts")
def test_the_second_signal_is_as_if_the_handler_were_not_there():
    trainer, _, events = make(2, signal.SIGINT)
    trainer.logger.disabled = True
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda: signal.raise_signal(signal.SIGINT)
    )
    with pytest.raises(KeyboardInterrupt):
        go(trainer)
    assert events == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_is_ignored_stays_ignored(number):
    signal.signal(number, signal.SIG_IGN)
    trainer, stop, _ = make(6, number)
    go(trainer)
    assert trainer.state.iteration == LENGTH * EPOCHS
    assert stop.received is None
    assert signal.getsignal(number) is signal.SIG_IGN


@settings(deadline=None)
@given(st.lists(st.sampled_from([signal.SIGHUP, signal.SIGINT, signal.SIGTERM]), min_size=1))
def test_of_all_signals_within_a_run_the_second_but_for_sighup_goes_on_to_the_script(numbers):
    forwarded = []
    for number in set(numbers):
        signal.signal(number, lambda number, frame: forwarded.append(number))
    trainer, stop, events = make(0)

    def send(engine, some):
        for number in some:
            signal.raise_signal(number)

    half = len(numbers) // 2 + 1
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=6), send, numbers[:half])
    trainer.add_event_handler(Events.TERMINATE, send, numbers[half:])  # when Checkpointer saves
    go(trainer)
    urgent = [number for number in numbers if number != signal.SIGHUP]
    assert forwarded == urgent[1:]
    assert stop.received == (urgent[0] if urgent else signal.SIGHUP)
    assert events[-2:] == [6, "terminated"]


@pytest.mark.parametrize("at", [0, 6])
def test_the_signals_are_given_back(at):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    trainer, *_ = make(at)
    go(trainer)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_close_gives_them_back_after_an_exception():
    before = signal.getsignal(signal.SIGTERM)
    trainer = Engine(lambda engine, batch: 1 / 0)
    trainer.logger.disabled = True
    stop = GracefulStop().attach(trainer)
    with pytest.raises(ZeroDivisionError):
        go(trainer)
    assert signal.getsignal(signal.SIGTERM) != before
    stop.close()
    assert signal.getsignal(signal.SIGTERM) == before


# In anyone's script


def failing(at):
    """A trainer whose step raises once, in iteration ``at``."""
    fail = [at]

    def step(engine, batch):
        if engine.state.iteration in fail:
            fail.clear()
            raise ArithmeticError
        return 1.0

    trainer = Engine(step)
    trainer.logger.disabled = True
    return trainer


@pytest.fixture
def received():
    """What a handler of the script's own receives."""
    signals = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    yield signals
    signal.signal(signal.SIGTERM, before)


def test_after_an_exception_a_signal_goes_to_whom_it_went_before(received):
    own = signal.getsignal(signal.SIGTERM)
    trainer = failing(at=2)
    stop = GracefulStop().attach(trainer)
    with pytest.raises(ArithmeticError):
        go(trainer)
    signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == own
    assert stop.received is None


def test_runs_after_an_exception_do_not_take_their_own_handler_for_the_previous(received):
    own = signal.getsignal(signal.SIGTERM)
    trainer = failing(at=2)
    GracefulStop().attach(trainer)
    with pytest.raises(ArithmeticError):
        go(trainer)
    go(trainer)  # Ignite's first run after an exception only forgets it
    go(trainer)
    assert signal.getsignal(signal.SIGTERM) == own


def test_the_default_is_still_the_end_of_the_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("""
import signal
from ignite.engine import Engine
from ultimus_ignite.handlers import GracefulStop
trainer = Engine(lambda engine, batch: 1 / 0)
trainer.logger.disabled = True
GracefulStop().attach(trainer)
try:
    trainer.run([0])
except ZeroDivisionError:
    signal.raise_signal(signal.SIGTERM)
print("alive")
""")
    ended = call("python", script)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGTERM, "", "")


def test_a_signal_ends_the_run_within_and_the_run_around_it():
    outer, outer_stop, _ = make(0)
    inner, inner_stop, _ = make(2)
    outer.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: go(inner))
    go(outer)
    assert inner_stop.received == outer_stop.received == signal.SIGTERM
    assert (inner.state.iteration, outer.state.iteration) == (2, 1)


def test_an_epoch_that_is_ended_early_is_still_completed():
    trainer, stop, _ = make(2)
    completed = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: trainer.terminate_epoch())
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: completed.append(1))
    go(trainer)
    assert (trainer.state.iteration, completed, stop.received) == (2, [1], signal.SIGTERM)


def test_a_handler_set_in_mid_run_is_left_alone(received):
    own = signal.getsignal(signal.SIGTERM)
    trainer = Engine(lambda engine, batch: signal.signal(signal.SIGTERM, own))
    GracefulStop().attach(trainer)
    trainer.run([0])
    assert signal.getsignal(signal.SIGTERM) == own


def test_an_interrupted_run_gives_the_signals_back_and_takes_them_again(received):
    own = signal.getsignal(signal.SIGTERM)
    trainer, stop, _ = make(6)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), trainer.interrupt)
    go(trainer)
    assert signal.getsignal(signal.SIGTERM) == own
    go(trainer)
    assert (trainer.state.iteration, stop.received) == (6, signal.SIGTERM)
    assert received == []


class SigtermMeanwhile:
    """The module `signal`, in which a SIGTERM comes while the handler of a SIGHUP is at work."""

    def __getattr__(self, name):
        return getattr(signal, name)

    def Signals(self, number):
        if number == signal.SIGHUP:
            signal.raise_signal(signal.SIGTERM)
        return signal.Signals(number)


def test_a_sigterm_that_comes_while_a_sighup_is_noted_is_not_forgotten(monkeypatch):
    monkeypatch.setattr("ultimus_ignite.handlers.graceful_stop.signal", SigtermMeanwhile())
    trainer = Engine(lambda engine, batch: None)
    stop = GracefulStop().attach(trainer)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda: signal.raise_signal(signal.SIGHUP)
    )
    trainer.run(range(5), max_epochs=1)
    assert (stop.received, trainer.state.iteration) == (signal.SIGTERM, 2)


WORKERS = """
import os, signal, sys
from pathlib import Path
from ignite.engine import Engine, Events
from torch.utils.data import DataLoader
from ultimus_ignite.handlers import GracefulStop

WAITING = Path(sys.argv[2])


NUMBERS = [signal.Signals[name] for name in sys.argv[4:]]


class Data:
    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 4:  # the signal comes when the engine needs this very item
            while not WAITING.exists():
                pass
            for number in NUMBERS:
                os.killpg(0, number)
                signal.sigpending()  # Python's handlers run here
        return index


if __name__ == "__main__":
    os.setpgrp()
    loader = DataLoader(Data(), batch_size=1, num_workers=1, multiprocessing_context=sys.argv[1])
    trainer, evaluator = (Engine(lambda engine, batch: None) for _ in range(2))
    stop = GracefulStop().attach(trainer, evaluator)
    engine = trainer if sys.argv[3] == "trainer" else evaluator
    engine.add_event_handler(Events.GET_BATCH_STARTED, lambda: (
        WAITING.touch() if engine.state.iteration == 4 else None))
    if engine is evaluator:
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(loader))
    trainer.run(loader if engine is trainer else [0], max_epochs=5)
    print(stop.received.name, trainer.state.epoch, engine.state.iteration, loader.worker_init_fn,
          engine.state.dataloader is loader)
"""


@pytest.mark.parametrize(
    ("context", "engine", "iterations", "numbers"),
    [
        ("fork", "trainer", 5, ["SIGTERM"]),
        ("spawn", "trainer", 5, ["SIGHUP", "SIGHUP", "SIGTERM", "SIGHUP"]),
        ("forkserver", "trainer", 5, ["SIGTERM"]),
        ("fork", "evaluator", 8, ["SIGTERM", "SIGHUP", "SIGHUP"]),  # an evaluation is finished
        ("spawn", "evaluator", 8, ["SIGTERM"]),
    ],
)
def test_workers_outlive_a_signal_to_the_whole_process_group(
    tmp_path, context, engine, iterations, numbers
):
    script = tmp_path / "script.py"
    script.write_text(WORKERS)
    ended = call("python", script, context, tmp_path / "waiting", engine, *numbers)
    assert (ended.returncode, ended.stdout) == (0, f"SIGTERM 1 {iterations} None True\n"), (
        ended.stderr
    )


def test_a_stop_whose_run_failed_does_not_end_the_next_ones_run(received):
    failed = failing(at=2)
    GracefulStop().attach(failed)
    with pytest.raises(ArithmeticError):
        go(failed)
    trainer, stop, _ = make(6)
    go(trainer)
    assert (trainer.state.iteration, stop.received) == (6, signal.SIGTERM)
    assert received == []
    signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM]


def test_stops_detached_in_any_order_leave_the_signal_as_it_was(received):
    own = signal.getsignal(signal.SIGTERM)
    stops = [GracefulStop() for _ in range(2)]
    outer, inner = (Engine(lambda engine, batch: None) for _ in range(2))
    stops[0].attach(outer)
    stops[1].attach(inner)
    inner.add_event_handler(Events.ITERATION_COMPLETED, stops[0].detach)
    outer.add_event_handler(Events.ITERATION_COMPLETED, lambda: inner.run([0]))
    outer.run([0])
    assert signal.getsignal(signal.SIGTERM) == own


def test_a_process_that_is_forked_in_a_run_can_still_be_terminated(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("""
import multiprocessing, time
from ignite.engine import Engine
from ultimus_ignite.handlers import GracefulStop

context = multiprocessing.get_context("fork")

def child(ready):
    ready.set()  # what comes before Python is up in a fork is lost, whoever handles it
    time.sleep(60)

def step(engine, batch):
    ready = context.Event()
    process = context.Process(target=child, args=(ready,))
    process.start()
    ready.wait()
    process.terminate()
    process.join()
    return process.exitcode

trainer = Engine(step)
GracefulStop().attach(trainer)
print(trainer.run([0]).output)
""")
    ended = call("python", script)
    assert ended.stdout == f"{-signal.SIGTERM}\n", ended.stderr


def test_outside_the_main_thread_it_says_what_to_do():
    trainer = Engine(lambda engine, batch: None)
    trainer.logger.disabled = True
    GracefulStop().attach(trainer)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(trainer.run, [0])
    with pytest.raises(ValueError, match="GracefulStop cannot listen.*in the main thread"):
        ended.result()


def test_its_own_handler_put_back_by_somebody_else_is_not_taken_for_the_previous(received):
    own, saved = signal.getsignal(signal.SIGTERM), []

    def step(engine, batch):
        if not saved:
            saved.append(signal.signal(signal.SIGTERM, lambda *_: None))

    trainer = Engine(step)
    GracefulStop().attach(trainer)
    trainer.run([0])
    signal.signal(signal.SIGTERM, saved[0])
    trainer.run([0])
    assert signal.getsignal(signal.SIGTERM) == own
    signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM]


@pytest.mark.usefixtures("received")
def test_a_handler_that_hands_signals_on_and_puts_the_stops_own_back_is_no_loop():
    handlers = []

    def step(engine, batch):
        if not handlers:
            handlers.append(signal.signal(signal.SIGTERM, lambda *args: handlers[0](*args)))
            signal.raise_signal(signal.SIGTERM)

    trainer = Engine(step)
    stop = GracefulStop().attach(trainer)
    trainer.run(range(3))
    assert (trainer.state.iteration, stop.received) == (1, signal.SIGTERM)
    signal.signal(signal.SIGTERM, handlers[0])
    trainer.run(range(3), max_epochs=3)
    assert stop.received is None
    assert stop._previous.get(signal.SIGTERM) != stop._note


def test_a_second_signal_while_the_first_run_of_close_is_not_over(monkeypatch):
    stop = GracefulStop()
    trainer = Engine(
        lambda engine, batch: (
            signal.raise_signal(signal.SIGTERM) if engine.state.iteration == 1 else None
        )
    )
    trainer.logger.disabled = True
    stop.attach(trainer)
    real, raised = signal.getsignal, []

    def getsignal(number):  # which is asked for each signal that is given back
        if trainer.state.iteration == 1 and not raised:
            raised.append(number)
            signal.raise_signal(signal.SIGINT)
        return real(number)

    monkeypatch.setattr(signal, "getsignal", getsignal)
    assert trainer.run(range(3)).iteration == 1
    assert raised
    assert stop.received is not None
