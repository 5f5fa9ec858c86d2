"""The numbers of several ranks: those of all samples, the same on each rank and in a checkpoint."""

import math
import random
import warnings

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Engine, Events
from ranks import on_ranks

from ultimus_ignite.data.sampler import EndlessBatches
from ultimus_ignite.handlers import (
    Checkpointer,
    EarlyEnd,
    GracefulStop,
    History,
    NonFiniteGuard,
)
from ultimus_ignite.handlers.support import ranks

EPOCHS, LENGTH = 3, 7


def drawn(seed, rank):
    """What the step of a rank returns in each iteration: losses, hits and counts of its samples."""
    draw = random.Random(f"{seed} {rank}")
    outputs = []
    for _ in range(EPOCHS * LENGTH):
        count = draw.randint(0, 5)
        loss = draw.uniform(0, 9) if count else math.nan  # the mean over no sample
        outputs.append({"loss": loss, "correct": draw.randint(0, count), "count": count})
    return outputs


def optimizer():
    return torch.optim.SGD([torch.zeros(1)], lr=0.1)


def trainer_of(outputs):
    def step(engine, batch):
        idist.all_reduce(torch.zeros(1))  # as the gradients are
        output = outputs[engine.state.iteration - 1]
        return {name: torch.tensor(value) for name, value in output.items()} | {
            "count": output["count"]
        }

    return Engine(step)


def recorded(seed, count):
    trainer = trainer_of(drawn(seed, idist.get_rank() if count > 1 else 0))
    history = History(optimizer()).attach(trainer)
    trainer.run(range(LENGTH), max_epochs=EPOCHS)
    return history.rows, history.losses


@pytest.mark.parametrize("seed", range(3))
def test_the_means_are_over_the_samples_of_all_ranks(seed):
    count = 2 + seed % 2
    (rows, losses), *others = on_ranks(count, recorded, seed, count)
    assert repr(others) == repr([(rows, losses)] * (count - 1))
    steps = [*zip(*(drawn(seed, rank) for rank in range(count)), strict=True)]
    for epoch, row in enumerate(rows):
        samples = [each for step in steps[epoch * LENGTH :][:LENGTH] for each in step]
        total = sum(each["count"] for each in samples)
        loss = sum(each["loss"] * each["count"] for each in samples if each["count"]) / total
        assert row["train_loss"] == pytest.approx(loss, rel=1e-6)
        assert row["train_accuracy"] == sum(each["correct"] for each in samples) / total
    for loss, step in zip(losses, steps, strict=True):
        total = sum(each["count"] for each in step)
        mean = sum(each["loss"] * each["count"] for each in step if each["count"]) / (total or 1)
        assert loss == pytest.approx(mean, rel=1e-6)


def recorded_commonly(seed):
    """Each rank returns the same numbers."""
    trainer = trainer_of(common(seed))
    history = History(optimizer()).attach(trainer)
    trainer.run(range(LENGTH), max_epochs=EPOCHS)
    assert len({row.pop("seconds") for row in history.rows}) == EPOCHS
    return history.rows, history.losses


def common(seed):
    return [each | {"loss": each["count"] / 3} for each in drawn(seed, 0)]


def test_numbers_that_a_step_has_merged_stay_as_they_are():
    alone, both = on_ranks(1, recorded_commonly, 5), on_ranks(2, recorded_commonly, 5)
    assert both == alone * 2


def losses_of_each(seed):
    """Without counts, a batch has the weight of any other."""
    idist.barrier()
    trainer = Engine(lambda engine, batch: float(batch + 100 * idist.get_rank()))
    history = History(optimizer()).attach(trainer)
    trainer.run(range(4), max_epochs=1)
    return history.losses, history.rows[0]["train_loss"]


def test_losses_without_counts_are_averaged():
    assert on_ranks(2, losses_of_each, 0) == [([50.0, 51.0, 52.0, 53.0], 51.5)] * 2


def interrupted(folder, seed, stop):
    """A run that ends in mid-epoch and is resumed; it saves every two iterations."""
    outputs = drawn(seed, idist.get_rank())

    def run(last):
        trainer, rates = trainer_of(outputs), optimizer()
        history = History(rates).attach(trainer)
        to_save = {"trainer": trainer, "history": history}
        checkpointer = Checkpointer(to_save, directory=folder, every=2).attach(trainer)
        checkpointer.resume()
        if last is not None:
            trainer.add_event_handler(Events.ITERATION_COMPLETED(once=last), trainer.terminate)
        start = trainer.state.iteration
        batches = EndlessBatches(range(LENGTH), batch_size=1, seed=1, start=start)
        trainer.run(batches, max_epochs=EPOCHS, epoch_length=LENGTH)
        return history

    if stop is not None:
        run(stop)
        idist.barrier()  # rank 0 has saved
    history = run(None)
    return [row | {"seconds": None} for row in history.rows], history.losses


@pytest.mark.parametrize("stop", [3, 10, 14])
def test_a_resumed_run_has_the_numbers_of_the_unbroken_one(tmp_path, stop):
    unbroken = on_ranks(2, interrupted, tmp_path / "unbroken", 8, None)
    assert repr(on_ranks(2, interrupted, tmp_path / "broken", 8, stop)) == repr(unbroken)


def asked_by_one(seed):
    """Rank 0 alone asks for the state in mid-epoch, as a script does that saves it by itself."""
    trainer = trainer_of(drawn(seed, idist.get_rank()))
    history = History(optimizer()).attach(trainer)
    states = []
    if idist.get_rank() == 0:
        event = Events.ITERATION_COMPLETED(every=3)
        trainer.add_event_handler(event, lambda: states.append(history.state_dict()))
    trainer.run(range(LENGTH), max_epochs=EPOCHS)
    return history.rows[-1]["train_loss"], states and len(states[0]["unfinished"]["losses"])


def test_one_rank_may_ask_for_the_state():
    (loss, losses), (other, _) = on_ranks(2, asked_by_one, 4)
    assert loss == other == on_ranks(2, recorded, 4, 2)[0][0][-1]["train_loss"]
    assert losses == 3


def on_rank_0_only(seed):
    trainer = trainer_of(drawn(seed, idist.get_rank()))
    history = History(optimizer())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if idist.get_rank() == 0:
            history.attach(trainer)
        trainer.run(range(LENGTH), max_epochs=EPOCHS)
    return [row["train_accuracy"] for row in history.rows], {str(each.message) for each in caught}


def test_a_history_on_rank_0_alone_has_its_numbers_and_says_so():
    (accuracies, messages), _ = on_ranks(2, on_rank_0_only, 6)
    samples = [drawn(6, 0)[epoch * LENGTH :][:LENGTH] for epoch in range(EPOCHS)]
    assert accuracies == [
        sum(each["correct"] for each in epoch) / sum(each["count"] for each in epoch)
        for epoch in samples
    ]
    text = "History is attached on 1 of 2 ranks: its numbers are those of this rank alone"
    assert messages == {text}


def refused(kind, folder):
    """A handler on rank 0 alone that must exchange something; the other waits at the next step."""
    ranks.PATIENCE = 0.2
    trainer, rates = trainer_of(common(0)), optimizer()
    trainer.logger.disabled = True
    if idist.get_rank() == 1:
        return None
    history = History(rates)
    create = {
        "GracefulStop": GracefulStop,
        "NonFiniteGuard": lambda: NonFiniteGuard(rates),
        "EarlyEnd": lambda: EarlyEnd(history, max_hours=1.0),
        "Checkpointer": lambda: Checkpointer({"trainer": trainer}, directory=folder),
    }
    alone = Engine(lambda engine, batch: 1.0)
    alone.logger.disabled = True
    history.attach(alone)
    create[kind]().attach(alone)
    with pytest.raises(RuntimeError) as error:
        alone.run(range(3), max_epochs=2)
    return str(error.value)


@pytest.mark.parametrize("kind", ["GracefulStop", "NonFiniteGuard", "EarlyEnd", "Checkpointer"])
def test_a_handler_that_asks_others_is_refused_on_one_rank_alone(tmp_path, kind):
    message, _ = on_ranks(2, refused, kind, tmp_path)
    assert message == f"{kind} is attached on 1 of 2 ranks: attach it on every rank"
