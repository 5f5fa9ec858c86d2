"""Handlers on two ranks: what one of them notices ends both, after the same iteration."""

import os
import signal

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Engine, Events
from ranks import on_ranks
from torch import nn

from ultimus_ignite.handlers import EarlyEnd, GracefulStop, History, NonFiniteError, NonFiniteGuard
from ultimus_ignite.handlers.support.ranks import CommonMoments


def step(engine, batch):
    """A step that the ranks take together, as with gradients; it waits for the slower one."""
    idist.all_reduce(torch.zeros(1))
    return 1.0


def stopped(rank, number, iteration):
    """Send this rank a signal in an iteration; returns where the run ended."""
    trainer, stop = Engine(step), GracefulStop()
    stop.attach(trainer)
    if idist.get_rank() == rank:
        trainer.add_event_handler(
            Events.ITERATION_STARTED(once=iteration), lambda: os.kill(os.getpid(), number)
        )
    state = trainer.run(range(10**6), max_epochs=1)
    return state.iteration, stop.received


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_stops_all_after_one_iteration(rank, number):
    first, second = on_ranks(2, stopped, rank, number, 37)
    assert first == second
    assert first[0] >= 37
    assert first[1] == number


def stopped_in_the_epoch(rank):
    """A signal in an epoch's last iteration; returns where the run ended."""
    trainer, stop = Engine(step), GracefulStop()
    stop.attach(trainer)
    if idist.get_rank() == rank:
        event = Events.ITERATION_COMPLETED(once=10)
        trainer.add_event_handler(event, lambda: os.kill(os.getpid(), signal.SIGTERM))
    return trainer.run(range(5), max_epochs=4).iteration, stop.received


@pytest.mark.parametrize("rank", [0, 1])
def test_in_an_epochs_last_iteration_it_stops_all_after_the_epoch(rank):
    assert on_ranks(2, stopped_in_the_epoch, rank) == [(10, signal.SIGTERM)] * 2


def guarded(what, fused, every):
    """A run whose rank 1 has bad losses or gradients from iteration 40 on; returns how it ended."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1, fused=fused)

    def update(engine, batch):
        bad = engine.state.iteration >= 40 and idist.get_rank() == 1
        gradient = torch.full((1,), torch.nan if bad and what == "gradient" else 1.0)
        weight.grad = idist.all_reduce(gradient)
        optimizer.step()
        return {"nan": torch.tensor(torch.nan), "explosion": 1e9}.get(what, 1.0) if bad else 1.0

    trainer = Engine(update)
    trainer.logger.disabled = True
    guard = NonFiniteGuard(optimizer, max_loss_ratio=20.0).attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=every), guard.check)
    try:
        trainer.run(range(60), max_epochs=100)
    except NonFiniteError as error:
        return trainer.state.iteration, str(error).partition(",")[0], weight.item()


@pytest.mark.parametrize("what", ["gradient", "nan", "explosion"])
@pytest.mark.parametrize(("fused", "every"), [(True, 7), (True, 10**9), (False, 10**9)])
def test_what_one_rank_finds_ends_all_at_the_same_iteration(what, fused, every):
    first, second = on_ranks(2, guarded, what, fused, every)
    assert first == second or (first[0] == second[0] and what != "gradient")
    message = (first if what == "gradient" else second)[1]
    if what == "explosion":
        assert message.startswith("5 losses in a row")
    else:
        assert message == "the loss or its gradient became NaN or infinite at iteration 40"
    assert all(torch.isfinite(torch.tensor(weight)) for *_, weight in (first, second))


def timed(hours):
    """A run whose ranks believe that an epoch took them another time; returns how many it has."""
    trainer = Engine(step)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    history = History(optimizer).attach(trainer)

    def claim():
        history.rows[-1]["seconds"] = [1800.0, 60.0][idist.get_rank()]

    trainer.add_event_handler(Events.EPOCH_COMPLETED, claim)
    EarlyEnd(history, max_hours=hours).attach(trainer)
    trainer.run(range(3), max_epochs=50)
    return len(history.rows)


def test_the_clock_of_rank_0_ends_all():
    assert on_ranks(2, timed, 2.0) == [4, 4]


def moments(count):
    """The iterations that are moments, all of them within the interval."""
    common = CommonMoments(1000.0, owner=None)
    return [iteration for iteration in range(count) if common.is_due()]


def test_the_moments_are_common_and_become_rare():
    assert on_ranks(3, moments, 100) == [[0, 2, 6, 14, 30, 62]] * 3
