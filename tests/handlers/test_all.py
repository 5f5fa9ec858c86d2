"""The contract that every exported handler keeps in anyone's script: the file to read first.

Handlers x outputs x endings x second runs x detaching. What each handler computes is tested in its
own file; random scripts that attach them in random order are in `test_strangers.py`.

Two things no handler can do, and none promises:

- An exception fires no event, so what is given back after one is given back by the next thing that
  touches it: the optimizer's next step, the next signal, the next run; or at once, by ``with``.
- A run whose step swallows its own exception looks like a good one.
"""

import contextlib
import gc
import inspect
import io
import signal
import weakref
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn
from tqdm import tqdm

import ultimus_ignite.handlers as handlers

LENGTH = 5
HANDLERS = {  # how each is made with nothing but what it needs
    "BatchLogger": lambda s: handlers.BatchLogger(s.optimizer, file=io.StringIO()),
    "Checkpointer": lambda s: handlers.Checkpointer(s.to_save, directory=s.folder / "checkpoints"),
    "CurveRenderer": lambda s: handlers.CurveRenderer(s.history, path=s.folder / "curves.png"),
    "EarlyEnd": lambda s: handlers.EarlyEnd(s.history, patience=9),
    "GracefulStop": lambda s: handlers.GracefulStop(),
    "History": lambda s: handlers.History(s.optimizer, path=s.folder / "out" / "history.csv"),
    "NonFiniteGuard": lambda s: handlers.NonFiniteGuard(s.optimizer),
    "OneCycleScheduler": lambda s: handlers.OneCycleScheduler(s.optimizer, max_lr=0.1),
}
NAMES = [name for name in handlers.__all__ if hasattr(getattr(handlers, name), "attach")]
READERS = ["BatchLogger", "History", "NonFiniteGuard"]  # of the step's output
WITH_STATE = [name for name in NAMES if hasattr(getattr(handlers, name), "state_dict")]


class Script:
    """A stranger's script: a weight that falls by the rate in every step it really takes."""

    def __init__(self, folder, output=1.0):
        self.folder = folder
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.1, momentum=0.9, fused=True)
        self.output = output
        self.trainer = Engine(self.step)
        self.trainer.logger.disabled = True
        self.to_save = {"trainer": self.trainer, "optimizer": self.optimizer}
        self.history = handlers.History(self.optimizer)

    def step(self, engine, batch):
        self.optimizer.zero_grad()
        self.weight.sum().backward()
        self.optimizer.step()
        return self.output

    def run(self, **options):
        return self.trainer.run(range(LENGTH), **{"max_epochs": 2, **options})

    def outside(self):
        """All that a handler may have touched outside its engine."""
        return {
            "hooks": len(self.optimizer._optimizer_step_pre_hooks)
            + len(self.optimizer._optimizer_step_post_hooks),
            "attributes": {"found_inf", "grad_scale"} & vars(self.optimizer).keys(),
            "signals": [
                signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            ],
            "bars": len(getattr(tqdm, "_instances", ())),
        }


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def script(tmp_path):
    return Script(tmp_path)


def test_every_handler_is_under_contract():
    assert set(NAMES) == set(HANDLERS)
    assert WITH_STATE == ["BatchLogger", "History", "OneCycleScheduler"]


# What it looks like


def test_options_are_keyword_only_after_the_subject(name):
    parameters = list(inspect.signature(getattr(handlers, name)).parameters.values())
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[1:])


def test_it_imports_nothing_else_of_this_project(name):
    source = inspect.getsource(inspect.getmodule(getattr(handlers, name)))
    ours = [line for line in source.splitlines() if "import" in line and "ultimus_ignite" in line]
    assert all(line.startswith("from ultimus_ignite.handlers.") for line in ours)


def test_its_docstring_says_what_a_user_asks(name):
    text = inspect.getdoc(getattr(handlers, name))
    for section in ("Event", "Args:", "Example:"):
        assert section in text


def test_the_constructor_touches_no_disk(name, script):
    HANDLERS[name](script)
    assert list(script.folder.iterdir()) == []


# Attaching


def test_a_second_attach_is_refused(name, script):
    handler = HANDLERS[name](script)
    assert handler.attach(script.trainer) is handler
    with pytest.raises(ValueError, match=f"{name} is attached to this engine already: detach"):
        handler.attach(script.trainer)


def test_detached_it_hears_nothing_and_can_be_attached_again(name, script):
    handler = HANDLERS[name](script).attach(script.trainer)
    handler.detach()
    assert not any(script.trainer._event_handlers.values())
    script.run()
    assert script.outside() == Script(script.folder).outside()
    assert list(script.folder.iterdir()) == []
    handler.attach(script.trainer)
    script.run()


def test_one_run_within_another_is_refused(name, script):
    handler = HANDLERS[name](script).attach(script.trainer)
    inner = Engine(lambda engine, batch: 1.0)
    inner.logger.disabled = True
    handler.attach(inner)
    script.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: inner.run(range(2)))
    with handler, pytest.raises(ValueError, match=f"one {name} is attached to two engines"):
        script.run()


# Ending


def raising(error):
    def add(script):
        def end():
            raise error

        script.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), end)

    return add


def calling(method, event, **options):
    return lambda s: s.trainer.add_event_handler(
        event, lambda: getattr(s.trainer, method)(**options)
    )


THIRD = Events.ITERATION_COMPLETED(once=3)
ENDINGS = {
    "completed": lambda script: None,
    "terminated": calling("terminate", THIRD),
    "terminated on the last iteration": calling("terminate", Events.ITERATION_COMPLETED(once=5)),
    "terminated without COMPLETED": calling("terminate", THIRD, skip_completed=True),
    "an epoch terminated": calling("terminate_epoch", THIRD),
    "an epoch terminated without its end": calling(
        "terminate_epoch", THIRD, skip_epoch_completed=True
    ),
    "interrupted": calling("interrupt", THIRD),
    "an exception": raising(ArithmeticError()),
    "Ctrl-C": raising(KeyboardInterrupt()),
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("fused", [True, False])
def test_what_it_touched_is_given_back_however_the_run_ends(name, script, ending, fused):
    script.optimizer.param_groups[0]["fused"] = fused
    before = script.outside()
    handler = HANDLERS[name](script).attach(script.trainer)
    ending(script)
    with_exception = False
    try:
        script.run()
    except (ArithmeticError, KeyboardInterrupt):
        with_exception = True
    weight, momentum = script.weight.item(), script.optimizer.state[script.weight]
    rate = script.optimizer.param_groups[0]["lr"]
    velocity = momentum["momentum_buffer"].item() * script.optimizer.param_groups[0]["momentum"] + 1
    script.step(None, None)  # the optimizer goes on as if there had never been a handler
    assert script.weight.item() == pytest.approx(weight - rate * velocity)
    if with_exception:
        handler.close()  # what the next signal, the next run, and `with` do
    assert script.outside() == before


def test_with_gives_back_at_once(name, script):
    before = script.outside()
    raising(ArithmeticError())(script)
    with pytest.raises(ArithmeticError), HANDLERS[name](script).attach(script.trainer):
        script.run()
    assert script.outside() == before


@pytest.mark.parametrize("ending", ["an exception", "interrupted", "terminated"])
def test_the_same_engine_runs_again(name, script, ending):
    HANDLERS[name](script).attach(script.trainer)
    ENDINGS[ending](script)
    try:
        script.run()
    except ArithmeticError:
        script.run()  # Ignite's first run after an exception only forgets it
    iteration = script.trainer.state.iteration
    script.run(max_epochs=2 if ending == "interrupted" else 4)
    assert script.trainer.state.iteration > iteration
    assert script.outside() == Script(script.folder).outside()


def test_a_second_run_works_or_is_refused_in_one_line(name, script):
    HANDLERS[name](script).attach(script.trainer)
    script.run()
    if name == "Checkpointer":
        with pytest.raises(handlers.CheckpointError, match="finished.*max_epochs.*another"):
            script.run()
        assert script.trainer.state.iteration == 0
    else:
        script.run()
        assert script.trainer.state.iteration == 2 * LENGTH


def test_ten_runs_one_after_another_leave_nothing(name, tmp_path):
    for fold in range(10):
        script = Script(tmp_path / str(fold))
        before = script.outside()
        HANDLERS[name](script).attach(script.trainer)
        script.run()
        assert script.outside() == before


def test_ten_folds_with_every_handler_leave_no_memory_and_no_descriptor(tmp_path):
    def fold(number):
        script = Script(tmp_path / str(number))
        for name in NAMES:
            HANDLERS[name](script).attach(script.trainer)
        if number % 2:
            raising(ArithmeticError())(script)
        with contextlib.suppress(ArithmeticError):
            script.run()
        return weakref.ref(script.trainer)

    def descriptors():
        return len(list(Path("/proc/self/fd").glob("*")))  # none on a system without it

    before = signal.getsignal(signal.SIGTERM)
    trainers = [fold(0), fold(1), fold(2)]
    gc.collect()
    open_before, objects_before = descriptors(), len(gc.get_objects())
    trainers += [fold(number) for number in range(3, 13)]
    gc.collect()
    assert [trainer for trainer in trainers if trainer() is not None] == []
    assert descriptors() == open_before
    assert len(gc.get_objects()) < objects_before + 500
    assert signal.getsignal(signal.SIGTERM) == before


# What it reads


Pair = namedtuple("Pair", "errD errG")
OUTPUTS = {
    "number": (1.0, ["loss"]),
    "integer": (3, ["loss"]),
    "numpy number": (np.float32(1.0), ["loss"]),
    "tensor": (torch.tensor(1.0), ["loss"]),
    "tensor with a gradient": (torch.ones(1, requires_grad=True).sum(), ["loss"]),
    "one-element tensor": (torch.ones(1, 1), ["loss"]),
    "half": (torch.tensor(1.0, dtype=torch.float16), ["loss"]),
    "large": (1e100, ["loss"]),
    "tuple": ((1.0, torch.tensor(2.0)), ["output_0", "output_1"]),
    "named tuple": (Pair(1.0, 2.0), ["errD", "errG"]),
    "dict": ({"errD": 1.0, "errG": np.float64(2.0)}, ["errD", "errG"]),
    "dict with more than numbers": (
        {"loss": 1.0, "logits": torch.ones(4, 2), "note": "x", "nothing": None},
        ["loss"],
    ),
    "correct without count": ({"loss": 1.0, "correct": 60}, ["loss", "correct"]),
}
NO_NUMBERS = {
    "None": None,
    "text": "1.0",
    "vector": torch.ones(3),
    "complex": torch.ones((), dtype=torch.complex64),
    "dict": {"logits": torch.ones(4, 2)},
    "empty dict": {},
    "tuple": (torch.ones(4, 2), 1.0),
}


@pytest.mark.parametrize(("output", "names"), OUTPUTS.values(), ids=OUTPUTS)
@pytest.mark.parametrize("name", READERS)
def test_any_numbers_are_taken_under_their_own_names(name, output, names, tmp_path):
    script = Script(tmp_path, output)
    handler = HANDLERS[name](script).attach(script.trainer)
    script.run(max_epochs=1)
    if name == "History":
        row = handler.rows[0]
        assert [column for column in row if column.startswith("train_") and row[column]] == [
            f"train_{name}" for name in names
        ]
        assert all(type(value) in (int, float, type(None)) for value in row.values())


@pytest.mark.parametrize("output", NO_NUMBERS.values(), ids=NO_NUMBERS)
@pytest.mark.parametrize("name", READERS)
def test_what_it_cannot_take_it_says_at_the_first_iteration(name, output, tmp_path):
    script = Script(tmp_path, output)
    HANDLERS[name](script).attach(script.trainer)
    with pytest.raises(TypeError, match=rf"{name}.*{name}\(output_transform"):
        script.run()
    assert script.trainer.state.iteration == 1


@pytest.mark.parametrize("name", ["BatchLogger", "History"])
def test_more_correct_than_there_are_is_refused(name, tmp_path):
    script = Script(tmp_path, {"loss": 1.0, "correct": torch.tensor(60), "count": 10})
    HANDLERS[name](script).attach(script.trainer)
    with pytest.raises(ValueError, match=f"{name}: .*60 predictions of 10 are correct"):
        script.run()
    assert script.trainer.state.epoch == 1


# What it remembers


@pytest.mark.parametrize("name", WITH_STATE)
def test_its_state_comes_back_by_value(name, tmp_path):
    script = Script(tmp_path, {"loss": torch.tensor(2.5), "correct": 1, "count": 2})
    handler = HANDLERS[name](script).attach(script.trainer)
    if name == "OneCycleScheduler":
        handler.load_state_dict({"skipped": 3})
    else:
        ENDINGS["terminated"](script)
        script.run()
    state = handler.state_dict()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    other = HANDLERS[name](Script(tmp_path))
    fresh = other.state_dict()
    other.load_state_dict(torch.load(buffer, weights_only=True))
    seconds = {"seconds": 0}
    assert repr(other.state_dict() | seconds) == repr(state | seconds)
    assert repr(fresh | seconds) != repr(state | seconds)


@pytest.mark.parametrize("name", WITH_STATE)
def test_its_state_can_be_saved_the_moment_it_is_attached(name, script):
    script.to_save[name] = HANDLERS[name](script).attach(script.trainer)
    checkpointer = HANDLERS["Checkpointer"](script).attach(script.trainer)
    script.run()
    assert checkpointer.resume()


# What is refused, and when


def test_attached_in_mid_run_it_is_refused_but_not_at_started(name, script):
    handler = HANDLERS[name](script)
    script.trainer.add_event_handler(Events.STARTED, lambda: handler.attach(script.trainer))
    with handler:
        script.run()
    late = HANDLERS[name](Script(script.folder / "late"))
    script.trainer.add_event_handler(Events.EPOCH_STARTED, lambda: late.attach(script.trainer))
    with late, pytest.raises(ValueError, match=f"{name} is attached in the middle of a run"):
        script.run(max_epochs=4)


@pytest.mark.parametrize("name", ["BatchLogger", "History"])
def test_one_evaluator_of_two_names_is_refused(name, script):
    evaluator = Engine(lambda engine, batch: None)
    with pytest.raises(ValueError, match=f"{name}: one evaluator has two names, train, val"):
        HANDLERS[name](script).attach(script.trainer, {"train": evaluator, "val": evaluator})


@pytest.mark.parametrize("name", ["BatchLogger", "History"])
def test_a_model_for_an_optimizer_is_refused(name):
    with pytest.raises(TypeError, match=f"{name} needs an optimizer, got Linear"):
        getattr(handlers, name)(nn.Linear(1, 1))


@pytest.mark.parametrize("count", [-1, 0.5, float("nan")])
@pytest.mark.parametrize("name", READERS)
def test_a_count_that_is_none_is_refused(name, count, tmp_path):
    script = Script(tmp_path, {"loss": 1.0, "count": count})
    HANDLERS[name](script).attach(script.trainer)
    with pytest.raises(TypeError, match=f"{name}: count .* must be a whole number"):
        script.run()
