import errno
import math
import os

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import global_step_from_engine
from torch import nn

from ultimus_ignite.handlers import Checkpointer, CheckpointError, CheckpointStore


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
        patch.setattr("ultimus_ignite.handlers.checkpoints.snapshot.FORMAT", 3)
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


# A checkpoint belongs to a run and to a moment


def script(folder, *, scores=(), **options):
    """A trainer that sets its weight to the iteration, and an evaluator with a score an epoch."""
    model = nn.Linear(1, 1, bias=False)
    trainer = Engine(lambda engine, batch: nn.init.constant_(model.weight, engine.state.iteration))
    evaluator = Engine(lambda engine, batch: None)
    trainer.logger.disabled = evaluator.logger.disabled = True
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(range(5)))
    checkpointer = Checkpointer(
        {"trainer": trainer, "model": model},
        directory=folder,
        score_function=(lambda engine: engine.state.metrics["score"]) if scores else None,
        **options,
    )
    return trainer, evaluator, model, checkpointer


@pytest.mark.parametrize("with_source", [False, True])
@pytest.mark.parametrize("attached_first", [False, True])
def test_on_an_evaluator_the_best_holds_the_weights_that_had_the_score(
    tmp_path, with_source, attached_first
):
    scores = iter([0.1, 0.9, 0.3, 0.2])
    trainer, evaluator, _, checkpointer = script(tmp_path, scores=[0])
    if with_source:
        checkpointer.global_step_transform = global_step_from_engine(trainer)

    def measure(engine):
        engine.state.metrics["score"] = next(scores)

    if attached_first:
        checkpointer.attach(evaluator)
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, measure)
    if not attached_first:
        checkpointer.attach(evaluator)
    trainer.run(range(3), max_epochs=4)
    iteration, best = checkpointer.load_best()
    assert (iteration, best["model"]["weight"].item()) == (6, 6.0)
    assert saved(tmp_path) == [6, 9, 12]


def test_a_fresh_run_does_not_begin_where_another_lies(tmp_path):
    trainer, _, _, checkpointer = script(tmp_path)
    checkpointer.attach(trainer)
    trainer.run(range(3), max_epochs=2)
    trainer, _, _, checkpointer = script(tmp_path)
    checkpointer.attach(trainer)
    with pytest.raises(CheckpointError, match=r"another run: call resume\(\).*another directory"):
        trainer.run(range(3), max_epochs=1)
    assert trainer.state.iteration == 0
    trainer, _, _, checkpointer = script(tmp_path)
    assert checkpointer.attach(trainer).resume()
    trainer.run(range(3), max_epochs=3)
    assert saved(tmp_path) == [6, 9]


def test_back_to_an_older_checkpoint_and_on(tmp_path):
    trainer, _, _, checkpointer = script(tmp_path, keep=4)
    checkpointer.attach(trainer)
    trainer.run(range(3), max_epochs=4)
    older = checkpointer.store.load(checkpointer.store.path(6))
    trainer, _, _, checkpointer = script(tmp_path, keep=3)
    checkpointer.attach(trainer)
    checkpointer.restore(older)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=8), trainer.terminate)
    trainer.run(range(3), max_epochs=4)
    again = script(tmp_path)[3]
    assert again.load_newest()["trainer"]["iteration"] == 8
    assert saved(tmp_path) == [8, 9, 12]  # the last three that were written


def test_resume_says_whether_there_was_something(tmp_path):
    trainer, _, _, checkpointer = script(tmp_path)
    checkpointer.attach(trainer)
    assert not checkpointer.resume()
    trainer.run(range(3), max_epochs=2)
    trainer, _, model, checkpointer = script(tmp_path)
    assert checkpointer.resume()
    assert (trainer.state.iteration, model.weight.item()) == (6, 6.0)


class Unsized:
    def __iter__(self):
        return iter(range(4))


@pytest.mark.parametrize("cut", range(1, 9))
@pytest.mark.parametrize("data", [range(4), Unsized()], ids=["sized", "unsized"])
@pytest.mark.parametrize("options", [{}, {"skip_epoch_completed": True}])
def test_epochs_ended_early_and_lengths_unknown_resume_where_they_were(
    tmp_path, data, cut, options
):
    def train(folder, until=None):
        seen = []
        trainer, _, _, checkpointer = script(folder, every=1)
        checkpointer.attach(trainer)
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda engine: seen.append((engine.state.epoch, engine.state.iteration)),
        )
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED(event_filter=lambda _, i: i in (2, 7)),
            lambda: trainer.terminate_epoch(**options),
        )
        if until is not None:
            trainer.add_event_handler(
                Events.ITERATION_COMPLETED(once=until), lambda: trainer.terminate()
            )
        checkpointer.resume()
        trainer.run(data, max_epochs=4)
        return seen

    if isinstance(data, Unsized) and cut == 6:
        pytest.skip("only the loader, which begins anew, could say that its epoch is over")
    whole = train(tmp_path / "whole")
    first = train(tmp_path / "cut", until=cut)
    second = train(tmp_path / "cut")
    if not isinstance(data, Unsized):
        assert first + second == whole
    assert second[0] == whole[cut]


# What can be saved, and when that is said


class Counter:
    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"function": [len]}, r"Checkpointer cannot save state\['mine'\]\['function'\]\[0\] is a"),
        ({"weight": torch.ones(1, device="meta")}, r"state\['mine'\]\['weight'\]"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_the_first_iteration(tmp_path, state, message):
    trainer = Engine(lambda engine, batch: None)
    trainer.logger.disabled = True
    Checkpointer({"mine": Counter(state)}, directory=tmp_path / "new").attach(trainer)
    with pytest.raises(CheckpointError, match=message):
        trainer.run([0])
    assert trainer.state.iteration == 0
    assert not (tmp_path / "new").exists()


def test_objects_without_a_state_are_refused_by_the_constructor(tmp_path):
    for wrong in (len, {"weight": torch.ones(1)}, nn.Linear(1, 1).weight):
        with pytest.raises(TypeError, match=r"to_save\['it'\] is a .* without state_dict"):
            Checkpointer({"it": wrong}, directory=tmp_path)


def roundtrip(folder, live, fresh):
    """A run of one step with ``live``, then ``fresh`` restored from it."""
    trainer = Engine(lambda engine, batch: None)
    trainer.logger.disabled = True
    Checkpointer({"it": live}, directory=folder).attach(trainer)
    trainer.run([0])
    Checkpointer({"it": fresh}, directory=folder).resume()
    return fresh


class Renamed(Counter):
    """A later version of `Counter`, which reads what the earlier one did not save."""

    def load_state_dict(self, state):
        self.state = state["steps"]


def test_an_object_that_cannot_load_its_state_is_named(tmp_path):
    message = r"Checkpointer cannot load it \(KeyError: 'steps'\): resume with the code that saved"
    with pytest.raises(CheckpointError, match=message) as caught:
        roundtrip(tmp_path, Counter({"iterations": 3}), Renamed({}))
    assert isinstance(caught.value.__cause__, KeyError)


class WithExtraState(nn.Linear):
    extra = None

    def get_extra_state(self):
        return {"steps": self.extra}

    def set_extra_state(self, state):
        self.extra = state["steps"]


def test_masks_extra_states_and_lazy_modules_come_back(tmp_path):
    mask = nn.Module()
    mask.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(3))
    fresh = nn.Module()
    fresh.register_buffer("mask", torch.zeros(3, 3))
    assert torch.equal(roundtrip(tmp_path / "mask", mask, fresh).mask, mask.mask)

    extra = WithExtraState(2, 2)
    extra.extra = 7
    assert roundtrip(tmp_path / "extra", extra, WithExtraState(2, 2)).extra == 7

    lazy = nn.LazyLinear(2)
    lazy(torch.ones(1, 3))
    assert torch.equal(roundtrip(tmp_path / "lazy", lazy, nn.LazyLinear(2)).weight, lazy.weight)


def test_a_lazy_module_that_is_made_by_the_first_step_can_be_saved(tmp_path):
    lazy = nn.LazyLinear(2)
    trainer = Engine(lambda engine, batch: lazy(batch))
    Checkpointer({"it": lazy}, directory=tmp_path).attach(trainer)
    trainer.run([torch.ones(1, 3)])
    fresh = nn.LazyLinear(2)
    Checkpointer({"it": fresh}, directory=tmp_path).resume()
    assert torch.equal(fresh.weight, lazy.weight)


def schedulers(optimizer):
    scheduling = torch.optim.lr_scheduler
    yield scheduling.MultiStepLR(optimizer, [2, 2, 5])
    yield scheduling.OneCycleLR(optimizer, max_lr=0.1, total_steps=10, cycle_momentum=False)
    yield scheduling.CosineAnnealingWarmRestarts(optimizer, 3)
    yield scheduling.ReduceLROnPlateau(optimizer)
    yield scheduling.SequentialLR(
        optimizer, [scheduling.LinearLR(optimizer), scheduling.ConstantLR(optimizer)], [3]
    )


@pytest.mark.parametrize("kind", range(5))
def test_torchs_schedulers_come_back(tmp_path, kind):
    live, fresh = (
        list(schedulers(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.5)))[kind]
        for _ in range(2)
    )
    live.optimizer.step()
    live.step(*[0.5] if kind == 3 else [])
    assert repr(roundtrip(tmp_path, live, fresh).state_dict()) == repr(live.state_dict())


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_trained_parameters_and_moments_must_be_finite(tmp_path, bad):
    def run(model, optimizer):
        trainer = Engine(lambda engine, batch: None)
        trainer.logger.disabled = True
        to_save = {"model": model, "optimizer": optimizer}
        Checkpointer(to_save, directory=tmp_path).attach(trainer)
        with pytest.raises(CheckpointError, match=r"(model\.bias|moment).* NaN or infinity"):
            trainer.run([0])

    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.state[model.weight]["momentum_buffer"] = torch.tensor([[bad]])
    run(model, optimizer)
    optimizer.state.clear()
    nn.init.constant_(model.bias, bad)
    run(model, optimizer)
    model.bias.requires_grad_(False)  # not trained: a mask, say
    trainer = Engine(lambda engine, batch: None)
    Checkpointer({"model": model}, directory=tmp_path / "other").attach(trainer)
    trainer.run([0])


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda m: m])
@pytest.mark.parametrize("unwrap", [nn.DataParallel, torch.compile, lambda m: m])
def test_the_names_know_of_no_wrapper(tmp_path, wrap, unwrap):
    model, other = (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(2))
    roundtrip(tmp_path, wrap(model), unwrap(other))
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)
    newest = Checkpointer({"it": model}, directory=tmp_path).load_newest()
    assert list(newest["it"]) == list(model.state_dict())


def test_metadata_that_older_checkpoints_lack_is_assumed(tmp_path):
    trainer, _, checkpointer = make(tmp_path, metadata={"seed": 1})
    checkpointer.attach(trainer)
    trainer.run(range(3), max_epochs=1)
    newer = make(tmp_path, metadata={"seed": 1, "mirror": False})[2]
    with pytest.raises(CheckpointError, match="mirror: None -> False"):
        newer.load_newest()
    newer.snapshot.assumed = {"mirror": False, "seed": 2}
    assert newer.load_newest()
    newer.snapshot.metadata["mirror"] = True
    with pytest.raises(CheckpointError, match="mirror: False -> True"):
        newer.load_newest()


def test_checkpoints_of_the_first_version_are_read(tmp_path):
    trainer, model, checkpointer = make(tmp_path, scores=(0.5,))
    state = {"format": 1, "metadata": {}, "best": (3, 0.5)}
    state["trainer"] = {"epoch_length": 3, "iteration": 3, "max_epochs": 1}
    state["model"] = {"weight": torch.full((2, 3), 3.0), "bias": torch.zeros(2)}
    CheckpointStore(tmp_path).save(state, iteration=3)
    assert checkpointer.resume()
    checkpointer.score_function = None
    checkpointer.attach(trainer)
    trainer.run(iter(int, 1), max_epochs=2, epoch_length=3)
    assert model.weight[0, 0] == 6
    assert saved(tmp_path) == [3, 6]


# What is refused, and when


def test_a_step_that_comes_again_is_refused(tmp_path):
    trainer, evaluator, _, checkpointer = script(tmp_path)
    checkpointer.global_step_transform = lambda engine, event: trainer.state.epoch
    checkpointer.attach(evaluator)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: evaluator.run([0]))
    with pytest.raises(CheckpointError, match="step 1 repeats at iteration 3: return"):
        trainer.run(range(3), max_epochs=2)


def test_evaluations_outside_the_trainers_run_count_its_iterations(tmp_path):
    scores = iter([0.1, 0.9, 0.3])
    model = nn.Linear(1, 1, bias=False)
    trainer = Engine(lambda engine, batch: nn.init.constant_(model.weight, engine.state.iteration))
    evaluator = Engine(lambda engine, batch: None)
    checkpointer = Checkpointer(
        {"trainer": trainer, "model": model},
        directory=tmp_path,
        score_function=lambda engine: next(scores),
    ).attach(evaluator)
    for epoch in range(1, 4):
        trainer.run(range(2), max_epochs=epoch)
        evaluator.run(range(5))
    assert saved(tmp_path) == [4, 6]
    iteration, best = checkpointer.load_best()
    assert (iteration, best["model"]["weight"].item()) == (4, 4.0)


def test_an_optimizer_of_another_kind_is_refused(tmp_path):
    def run(kind):
        optimizer = kind([nn.Parameter(torch.ones(1))], lr=0.1)
        trainer = Engine(lambda engine, batch: None)
        to_save = {"trainer": trainer, "optimizer": optimizer}
        return trainer, Checkpointer(to_save, directory=tmp_path).attach(trainer)

    trainer, _ = run(torch.optim.SGD)
    trainer.run([0])
    _, other = run(torch.optim.Adam)
    with pytest.raises(CheckpointError, match="optimizer: SGD -> Adam"):
        other.resume()


def test_two_in_one_folder_are_refused_before_the_first_iteration(tmp_path):
    trainer, _, _, first = script(tmp_path)
    first.attach(trainer)
    second = script(tmp_path)[3]
    second.attach(trainer)
    with pytest.raises(CheckpointError, match="two Checkpointers save into"):
        trainer.run(range(3))
    assert trainer.state.iteration == 0


def test_names_of_its_own_are_refused(tmp_path):
    with pytest.raises(ValueError, match="to_save: best, run: a checkpoint's own entry"):
        Checkpointer({"best": nn.Linear(1, 1), "run": nn.Linear(1, 1)}, directory=tmp_path)


@pytest.mark.parametrize("score", [None, "high", torch.ones(2)])
def test_a_score_that_is_no_number_is_refused_by_name(tmp_path, score):
    trainer, _, _, checkpointer = script(tmp_path)
    checkpointer.score_function = lambda engine: score
    checkpointer.attach(trainer)
    with pytest.raises(TypeError, match="Checkpointer: score_function gave .*, not a number"):
        trainer.run(range(3))


@pytest.mark.parametrize(
    "value", [math.nan, np.arange(3), torch.ones(2), (1, 2), [np.float32(0.1)], {"a": {1, 2}}]
)
def test_metadata_that_can_be_saved_can_be_resumed(tmp_path, value):
    trainer, _, checkpointer = make(tmp_path, metadata={"it": value})
    checkpointer.attach(trainer)
    trainer.run(range(3), max_epochs=1)
    assert make(tmp_path, metadata={"it": value})[2].resume()


def test_a_state_that_is_made_at_started_can_be_saved_whatever_the_order(tmp_path):
    trainer, _, _, checkpointer = script(tmp_path)
    checkpointer.attach(trainer)
    trainer.state_dict_user_keys.append("alpha")
    trainer.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "alpha", 0.5))
    trainer.run(range(3))
    assert checkpointer.load_newest()["trainer"]["alpha"] == 0.5


class Growing(nn.Linear):
    history = None

    def get_extra_state(self):
        return self.history

    def set_extra_state(self, state):
        self.history = state


def test_an_extra_state_may_grow(tmp_path):
    model = Growing(1, 1)
    model.history = torch.ones(5)
    assert torch.equal(roundtrip(tmp_path, model, Growing(1, 1)).history, torch.ones(5))


def test_a_compiled_optimizers_marks_do_not_matter(tmp_path):
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([weight])
    weight.grad = torch.ones(1)
    optimizer.step()
    optimizer.state[weight]["exp_avg"]._dynamo_static_input_type = "guarded"
    fresh = torch.optim.Adam([weight])
    roundtrip(tmp_path, optimizer, fresh)
    assert fresh.state[weight]["exp_avg"] == optimizer.state[weight]["exp_avg"]
