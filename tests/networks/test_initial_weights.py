"""The oracle of what is loaded is a comparison of every tensor with the file's and the model's."""

import random

import pytest
import torch
import torchvision
from ignite.engine import Events
from safetensors.torch import save_file
from torch import nn

from ultimus_ignite.build import build
from ultimus_ignite.handlers import CheckpointError
from ultimus_ignite.modules import UltimusNet, UltimusTokenNet
from ultimus_ignite.networks.initial_weights import load_initial_weights
from ultimus_ignite.recipe import Recipe, RecipeError
from ultimus_ignite.training import train

RECIPE = Recipe(data="digits", epochs=2, device="cpu")


def copies(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("case", range(6))
def test_all_but_the_classifier_of_another_size_comes_from_the_file(tmp_path, case):
    draw = random.Random(case)
    make = draw.choice([UltimusNet, UltimusTokenNet, torchvision.models.mobilenet_v3_small])
    before, now = draw.sample(range(2, 40), 2)
    source = make(num_classes=before)
    save_file(source.state_dict(), tmp_path / "source.safetensors")
    model = make(num_classes=now)
    own, theirs = copies(model), source.state_dict()
    note = load_initial_weights(model, str(tmp_path / "source.safetensors"), num_classes=now)
    anew = set()
    for key, value in model.state_dict().items():
        if value.shape == theirs[key].shape:
            assert torch.equal(value, theirs[key]), key
        else:
            assert torch.equal(value, own[key]), key
            anew.add(key)
    assert len(anew) == 2
    assert note.endswith(
        f"made anew for {now} classes instead of {before}: " + ", ".join(sorted(anew))
    )


def test_a_classifier_of_the_same_size_is_kept(tmp_path):
    source, model = nn.Linear(4, 3), nn.Linear(4, 3)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    note = load_initial_weights(model, str(tmp_path / "w.safetensors"), num_classes=3)
    assert torch.equal(model.weight, source.weight)
    assert note == f"init: 2 of 2 tensors from {tmp_path / 'w.safetensors'}"


def write(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save_file(content.state_dict(), path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file: give the folder of a finished run, or a safetensors file"),
        (b"", "not a safetensors file"),
        (b"\x80\x02}q\x00." * 9, "not a safetensors file"),
        (nn.Linear(5, 3), r"weight is \(3, 5\), the model has \(3, 4\): is it another model"),
        (nn.Linear(4, 3, bias=False), "the file lacks bias: is it another model"),
        (nn.Sequential(nn.Linear(4, 3)), "the model has no 0.bias: is it another model"),
    ],
)
def test_other_weights_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "w.safetensors"
    write(path, content)
    model = nn.Linear(4, 3)
    own = copies(model)
    with pytest.raises(RecipeError, match=f"^init: {path}: .*{message}") as caught:
        load_initial_weights(model, str(path), num_classes=3)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items())


def test_a_layer_of_another_width_is_no_classifier(tmp_path):
    save_file(nn.Linear(4, 7).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(RecipeError, match=r"bias is \(7,\), the model has \(5,\)"):
        load_initial_weights(nn.Linear(4, 5), str(tmp_path / "w.safetensors"), num_classes=3)


def test_a_run_starts_from_the_weights_of_another_one(tmp_path, capsys):
    first = train(RECIPE, out=tmp_path / "first")
    weights = copies(first.parts.model)
    second = Recipe(data="digits", epochs=2, device="cpu", seed=5, init=str(tmp_path / "first"))
    for key, value in build(second).model.state_dict().items():
        assert torch.equal(value, weights[key]), key
    capsys.readouterr()
    train(second, out=tmp_path / "second")
    assert (
        f"init: {len(weights)} of {len(weights)} tensors from {first.directory.model}\n"
        in capsys.readouterr().out
    )


def test_a_resumed_run_does_not_need_its_initial_weights(tmp_path):
    train(RECIPE, out=tmp_path / "first")
    recipe = Recipe(data="digits", epochs=2, device="cpu", init=str(tmp_path / "first"))
    whole = train(recipe, out=tmp_path / "whole")

    def cut_off():
        raise KeyboardInterrupt

    def stop(trainer, evaluator):
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), cut_off)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, out=tmp_path / "cut", configure=stop)
    (tmp_path / "first" / "model.safetensors").unlink()
    run = train(recipe, out=tmp_path / "cut", resume=True)
    for key, value in run.parts.model.state_dict().items():
        assert torch.equal(value, whole.parts.model.state_dict()[key]), key


def test_other_initial_weights_are_refused_when_a_run_is_resumed(tmp_path):
    train(RECIPE, out=tmp_path / "run")
    recipe = Recipe(data="digits", epochs=2, device="cpu", init="elsewhere")
    with pytest.raises(CheckpointError, match="init: None -> elsewhere"):
        train(recipe, out=tmp_path / "run", resume=True)


class Counting(nn.Linear):
    """It saves more than tensors."""

    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        assert state == {"calls": 3}


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, torch.compile])
@pytest.mark.parametrize("rewrap", [lambda m: m, nn.DataParallel, torch.compile])
def test_wrappers_and_other_saved_state_do_not_count(tmp_path, wrap, rewrap):
    source, model = Counting(4, 3), Counting(4, 3)
    state = wrap(source).state_dict()
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    save_file(tensors, tmp_path / "w.safetensors")
    load_initial_weights(rewrap(model), str(tmp_path / "w.safetensors"), num_classes=3)
    assert torch.equal(model.weight, source.weight)
    assert torch.equal(model.bias, source.bias)


def test_an_unknown_home_is_one_line():
    with pytest.raises(RecipeError, match="^init: ~no_such_user/run: there is no such file"):
        load_initial_weights(nn.Linear(4, 3), "~no_such_user/run", num_classes=3)
