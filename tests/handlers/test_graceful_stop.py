import signal

import pytest
from ignite.engine import Engine, Events

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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
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
