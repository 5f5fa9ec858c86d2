"""The contract that every exported handler keeps."""

import inspect
import io

import pytest
import torch
from ignite.engine import Engine, Events

import ultimus_ignite.handlers as handlers

OPTIMIZER = torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9)
HISTORY = handlers.History(OPTIMIZER)
SUBJECTS = {  # how each handler is made with nothing but what it needs
    "BatchLogger": lambda folder: handlers.BatchLogger(OPTIMIZER, file=io.StringIO()),
    "Checkpointer": lambda folder: handlers.Checkpointer({}, directory=folder / "checkpoints"),
    "CurveRenderer": lambda folder: handlers.CurveRenderer(HISTORY, path=folder / "curves.png"),
    "GracefulStop": lambda folder: handlers.GracefulStop(),
    "History": lambda folder: handlers.History(OPTIMIZER, path=folder / "history.csv"),
    "NonFiniteGuard": lambda folder: handlers.NonFiniteGuard(OPTIMIZER),
    "OneCycleScheduler": lambda folder: handlers.OneCycleScheduler(OPTIMIZER, max_lr=0.1),
}
NAMES = [name for name in handlers.__all__ if hasattr(getattr(handlers, name), "attach")]


def trainer_with(handler):
    trainer = Engine(lambda engine, batch: {"loss": 1.0, "correct": 1, "count": 2})
    HISTORY.attach(trainer)
    assert handler.attach(trainer) is handler
    return trainer


def test_every_handler_is_under_contract():
    assert set(NAMES) == set(SUBJECTS)


@pytest.mark.parametrize("name", NAMES)
def test_options_are_keyword_only_after_the_subject(name):
    parameters = list(inspect.signature(getattr(handlers, name)).parameters.values())
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[1:])


@pytest.mark.parametrize("name", NAMES)
def test_the_constructor_touches_no_disk(name, tmp_path):
    SUBJECTS[name](tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_it_attaches_to_any_engine_and_runs_twice(name, tmp_path):
    trainer = trainer_with(SUBJECTS[name](tmp_path))
    for _ in range(2):
        trainer.run(range(5), max_epochs=2)
    assert trainer.state.iteration == 10


@pytest.mark.parametrize("name", ["BatchLogger", "History"])  # those with memory
def test_its_state_survives_a_safe_load(name, tmp_path):
    handler = SUBJECTS[name](tmp_path)
    trainer = trainer_with(handler)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: trainer.terminate())
    trainer.run(range(5), max_epochs=2)
    buffer = io.BytesIO()
    torch.save(handler.state_dict(), buffer)
    buffer.seek(0)
    other = SUBJECTS[name](tmp_path)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert repr(other.state_dict().keys()) == repr(handler.state_dict().keys())


@pytest.mark.parametrize("name", NAMES)
def test_it_imports_nothing_else_of_this_project(name):
    source = inspect.getsource(inspect.getmodule(getattr(handlers, name)))
    ours = [line for line in source.splitlines() if "import" in line and "ultimus_ignite" in line]
    assert all(line.startswith("from ultimus_ignite.handlers.") for line in ours)


@pytest.mark.parametrize("name", NAMES)
def test_its_docstring_says_what_a_user_asks(name):
    text = inspect.getdoc(getattr(handlers, name))
    for section in ("Event", "Args:", "Example:"):
        assert section in text
