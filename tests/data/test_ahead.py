"""Batches made ahead: the same ones in the same order, and nothing is left of the thread."""

import itertools
import random
import threading

import pytest
import torch
from ignite.engine import Events

from ultimus_ignite.batches import is_light
from ultimus_ignite.build import build
from ultimus_ignite.data.ahead import made_ahead
from ultimus_ignite.recipe import RECIPES, Recipe
from ultimus_ignite.training import train


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def makers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_they_are_the_same_and_at_most_so_many_are_made(count):
    taken, made = 0, 0

    def batches():
        nonlocal made
        for number in itertools.count():
            made += 1
            yield number

    with made_ahead(batches(), count=count) as ahead:
        for expected in range(100):
            assert next(ahead) == expected
            taken += 1
            assert made <= taken + count
    assert not makers()


def test_an_exception_comes_at_its_turn(two_threads):
    def batches():
        yield from range(random.randint(4, 9))
        raise OSError("the disk is gone")

    taken = []
    with pytest.raises(OSError, match="the disk is gone"), made_ahead(batches()) as ahead:
        taken.extend(ahead)
    assert taken == list(range(len(taken)))
    assert len(taken) >= 4
    assert not makers()
    assert torch.get_num_threads() == 2


def test_half_of_the_threads_make_them(two_threads):
    def threads():
        while True:
            yield torch.get_num_threads()

    with made_ahead(threads()) as ahead:
        assert next(ahead) == torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("recipe", "threads", "expected"),
    [("classic", 2, True), ("classic", 1, False), ("tokens", 2, False), ("large", 2, False)],
)
def test_only_a_light_model_on_several_threads_has_them(two_threads, recipe, threads, expected):
    torch.set_num_threads(threads)
    parts = build(Recipe(model=RECIPES[recipe].model, data="digits", device="cpu"))
    assert parts.is_light is expected


def test_the_question_leaves_the_model_as_it_was(two_threads):
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Dropout())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert is_light(model, torch.ones(4, 3, 8, 8))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_run_with_them_has_the_bits_of_one_without(two_threads, tmp_path):
    """If the step has as many threads, here one."""
    recipe = Recipe(data="digits", epochs=2, device="cpu")
    ahead = train(recipe, out=tmp_path / "ahead")
    assert ahead.parts.is_light
    assert not makers()
    torch.set_num_threads(1)
    direct = train(recipe, out=tmp_path / "direct")
    assert not direct.parts.is_light
    for name, value in ahead.parts.model.state_dict().items():
        assert torch.equal(value, direct.parts.model.state_dict()[name])


def test_none_is_left_when_a_handler_ends_the_run(two_threads, tmp_path):
    def configure(trainer, evaluator):
        def fail():
            raise RuntimeError("a handler's mistake")

        trainer.add_event_handler(Events.ITERATION_COMPLETED, fail)

    with pytest.raises(RuntimeError, match="a handler's mistake"):
        train(Recipe(data="digits", device="cpu"), out=tmp_path, configure=configure)
    assert not makers()
    assert torch.get_num_threads() == 2
