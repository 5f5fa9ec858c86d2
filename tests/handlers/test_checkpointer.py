import errno
import math
import os

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from ultimus_ignite.handlers import Checkpointer, CheckpointError


def make(folder, *, scores=(), every=None, out_features=2, metadata=None, names=("model",)):
    """A trainer that adds 1 to the model's weight at each iteration."""
    model = nn.Linear(3, out_features)
    nn.init.zeros_(model.weight)

    def step(engine, batch):
        with torch.no_grad():
            model.weight += 1

    trainer = Engine(step)
    checkpointer = Checkpointer(
        {"trainer": trainer, **dict.fromkeys(names, model)},
        directory=folder,
        every=every,
        score_function=(lambda engine: scores[engine.state.epoch - 1]) if scores else None,
        metadata=metadata,
    )
    return trainer, model, checkpointer


def saved(folder):
    return sorted(int(path.stem.removeprefix("ckpt-")) for path in folder.glob("*.pt"))


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ((0.1, 0.9, 0.5, 0.2, 0.3), [6, 12, 15]),
        ((0.1, 0.2, 0.3, 0.4, 0.5), [12, 15]),
        ((math.nan, 0.5, 0.9, 0.1, math.nan), [9, 12, 15]),
        ((math.nan,) * 5, [12, 15]),
    ],
)
def test_the_newest_two_and_the_best_are_kept(tmp_path, scores, kept):
    trainer, _, checkpointer = make(tmp_path, scores=scores)
    checkpointer.attach(trainer)
    trainer.run(range(3), max_epochs=5)
    assert saved(tmp_path) == kept


def test_every_n_iterations_but_not_before_an_epoch_is_closed(tmp_path):
    trainer, _, checkpointer = make(tmp_path, every=3)
    checkpointer.attach(trainer)
    seen = []

    @trainer.on(Events.EPOCH_COMPLETED)
    def look():
        seen.append(saved(tmp_path))

    trainer.remove_event_handler(checkpointer.save_epoch, Events.EPOCH_COMPLETED)
    trainer.run(range(6), max_epochs=1)
    assert seen == [[3]]


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_run_cut_off_anywhere_goes_on_from_there(tmp_path, cut):
    trainer, model, checkpointer = make(tmp_path, every=1)
    checkpointer.attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=cut), lambda: trainer.terminate())
    trainer.run(range(3), max_epochs=3)

    trainer, model, checkpointer = make(tmp_path, every=1)
    checkpoint = checkpointer.load_newest()
    assert checkpoint["trainer"]["iteration"] == cut
    checkpointer.restore(checkpoint)
    checkpointer.attach(trainer)
    assert model.weight[0, 0] == trainer.state.iteration
    trainer.run(iter(int, 1), max_epochs=3, epoch_length=3)
    assert model.weight[0, 0] == 9


def test_terminate_saves_where_it_stops(tmp_path):
    trainer, _, checkpointer = make(tmp_path)
    checkpointer.attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda: trainer.terminate())
    trainer.run(range(3), max_epochs=3)
    assert saved(tmp_path) == [3, 4]


def test_the_best_survives_a_resume(tmp_path):
    trainer, _, checkpointer = make(tmp_path, scores=(0.9, 0.1))
    checkpointer.attach(trainer)
    trainer.run(range(3), max_epochs=2)

    trainer, _, checkpointer = make(tmp_path, scores=(0.9, 0.1, 0.2, 0.3, 0.4))
    checkpointer.restore(checkpointer.load_newest())
    checkpointer.attach(trainer)
    trainer.run(iter(int, 1), max_epochs=5, epoch_length=3)
    assert saved(tmp_path) == [3, 12, 15]


def test_nothing_there_is_none(tmp_path):
    assert make(tmp_path)[2].load_newest() is None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"out_features": 4}, r"model\.weight: \(2, 3\) -> \(4, 3\)"),
        ({"metadata": {"seed": 2}}, "seed: 1 -> 2"),
        ({"metadata": {"seed": 1, "epochs": 3}}, "epochs: None -> 3"),
        ({"names": ("network",)}, "model"),
    ],
)
def test_another_runs_checkpoint_is_refused_by_its_differences(tmp_path, other, message):
    trainer, _, checkpointer = make(tmp_path, metadata={"seed": 1})
    checkpointer.attach(trainer)
    trainer.run(range(3), max_epochs=1)
    trainer, model, checkpointer = make(tmp_path, **{"metadata": {"seed": 1}, **other})
    with pytest.raises(CheckpointError, match=message):
        checkpointer.load_newest()
    assert model.weight.sum() == 0
    assert trainer.state.iteration == 0


def test_an_optimizer_with_other_groups_is_refused(tmp_path):
    weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]

    def checkpointer(*groups):
        optimizer = torch.optim.SGD([{"params": group} for group in groups], lr=0.1)
        trainer = Engine(lambda engine, batch: None)
        to_save = {"trainer": trainer, "optimizer": optimizer}
        return trainer, Checkpointer(to_save, directory=tmp_path).attach(trainer)

    trainer, _ = checkpointer(weights)
    trainer.run(range(3), max_epochs=1)
    _, other = checkpointer(weights[:1], weights[1:])
    with pytest.raises(CheckpointError, match=r"group sizes: \[2\] -> \[1, 1\]"):
        other.load_newest()


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    trainer, _, checkpointer = make(tmp_path)
    checkpointer.attach(trainer)
    with monkeypatch.context() as patch:
        patch.setattr("ultimus_ignite.handlers.checkpointer.FORMAT", 3)
        trainer.run(range(3), max_epochs=1)
    with pytest.raises(CheckpointError, match="format 3, this version reads 2"):
        make(tmp_path)[2].load_newest()


def full_disk(failing):
    real, calls = os.fsync, iter(range(10**6))

    def fsync(descriptor):
        if next(calls) in failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    return fsync


def test_a_full_disk_warns_and_the_next_save_succeeds(tmp_path, monkeypatch):
    trainer, _, checkpointer = make(tmp_path)
    checkpointer.attach(trainer)
    trainer.run(range(3), max_epochs=1)
    trainer, _, checkpointer = make(tmp_path)
    checkpointer.restore(checkpointer.load_newest())
    checkpointer.attach(trainer)
    monkeypatch.setattr(os, "fsync", full_disk({0}))
    with pytest.warns(UserWarning, match="older ones are kept.*No space left"):
        trainer.run(iter(int, 1), max_epochs=4, epoch_length=3)
    assert saved(tmp_path) == [9, 12]


def test_a_last_save_that_fails_ends_the_run_badly(tmp_path, monkeypatch):
    trainer, _, checkpointer = make(tmp_path)
    checkpointer.attach(trainer)
    monkeypatch.setattr(os, "fsync", full_disk(range(10**6)))
    with (
        pytest.warns(UserWarning, match="No space left"),
        pytest.raises(OSError, match="No space left"),
    ):
        trainer.run(range(3), max_epochs=1)
    assert saved(tmp_path) == []


def test_every_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="every"):
        Checkpointer({}, directory=tmp_path, every=0)


def test_the_best_can_be_loaded_also_after_a_resume(tmp_path):
    trainer, _, checkpointer = make(tmp_path, scores=(0.1, 0.9, 0.5, 0.2))
    checkpointer.attach(trainer)
    trainer.run(range(3), max_epochs=4)
    _, model, resumed = make(tmp_path)
    resumed.restore(resumed.load_newest())
    for each in (checkpointer, resumed):
        iteration, best = each.load_best()
        assert iteration == 6
        assert best["model"]["weight"].unique().tolist() == [6.0]
    assert model.weight.unique().tolist() == [12.0]


def test_without_a_score_there_is_no_best(tmp_path):
    trainer, _, checkpointer = make(tmp_path, scores=(math.nan,))
    checkpointer.attach(trainer)
    trainer.run(range(3), max_epochs=1)
    with pytest.raises(CheckpointError, match="no epoch has a score"):
        checkpointer.load_best()
