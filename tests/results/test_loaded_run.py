import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from ultimus_ignite import Recipe, cli, load_run, train
from ultimus_ignite.data.sources import load
from ultimus_ignite.errors import UserError
from ultimus_ignite.run_directory import RunDirectory, RunDirectoryError

STATUSES = ["running", "finished", "interrupted", "failed", "non-finite"]


def quickly_train(out, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ultimus_ignite.handlers.CurveRenderer.render", lambda *arguments: None)
        return train(Recipe(data="digits", epochs=2, device="cpu"), out=out, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of digits, as `train` returned it."""
    return quickly_train(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of its folder."""
    return shutil.copytree(trained.directory.path, tmp_path / "run")


def content(folder):
    """Every file with its bytes and its time, and every folder."""
    return {
        path: (path.is_file() and path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


def edit(folder, change):
    path = folder / "recipe.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


def test_the_model_the_classes_and_the_history_are_those_of_the_run(trained, folder):
    run = load_run(folder)
    expected = trained.parts.model.state_dict()
    assert run.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in run.model.state_dict().items())
    assert not any(module.training for module in run.model.modules())
    assert run.classes == tuple("0123456789")
    assert run.recipe == trained.parts.recipe
    assert run.history == trained.history.rows


def test_an_image_is_normalised_as_in_training(folder):
    """Oracle: Pillow's resize and the arithmetic by hand, on the statistics of the data."""
    run, data = load_run(folder), load("digits", "unused")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    small = np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR))
    by_hand = (small / 255 - data.mean) / data.std
    prepared = run.preprocess(picture)
    assert (prepared.dtype, prepared.shape) == (torch.float32, (3, 32, 32))
    np.testing.assert_allclose(prepared.permute(1, 2, 0).numpy(), by_hand, atol=1e-5)


def test_pictures_and_their_tensors_give_the_logits_of_the_trained_model(trained, folder):
    run, images = load_run(folder), load("digits", "unused").test_images[:8]
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    with torch.inference_mode():
        logits = trained.parts.model.eval()(run.normalize(images))
    names, probabilities = run.predict(pictures)
    assert torch.equal(probabilities, logits.softmax(dim=1))
    assert names == [run.classes[i] for i in logits.argmax(dim=1)]
    assert torch.equal(run.predict(run.normalize(images)).probabilities, probabilities)


def test_a_missing_history_is_empty_and_a_damaged_one_hinders_nobody(folder):
    (folder / "history.csv").unlink()
    assert load_run(folder).history == []
    (folder / "history.csv").write_bytes(b"epoch,\xff")
    run = load_run(folder)
    with pytest.raises(RunDirectoryError, match=r"history\.csv: not a history"):
        _ = run.history


def test_a_model_made_in_python_must_be_given(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    quickly_train(tmp_path / "run", model=net)
    with pytest.raises(UserError, match=r"use load_run\(path, model=\.\.\.\)$"):
        load_run(tmp_path / "run")
    given = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    assert load_run(tmp_path / "run", model=given).model is given
    assert torch.equal(given[1].weight, net[1].weight)


def test_weights_of_another_model_are_refused(folder):
    with pytest.raises(UserError, match="is it another model"):
        load_run(folder, model=nn.Linear(2, 2))


# Each way in which a folder may be damaged, and what the one line says of it.
DAMAGES = {
    "no folder": (lambda f: shutil.rmtree(f), "recipe.json not found: no run in"),
    "nothing": (lambda f: (shutil.rmtree(f), f.mkdir()), "recipe.json not found: no run in"),
    "a file": (lambda f: (shutil.rmtree(f), f.touch()), "recipe.json not found: no run in"),
    "no recipe": (lambda f: (f / "recipe.json").unlink(), "cannot be read (No such file"),
    "half a recipe": (lambda f: os.truncate(f / "recipe.json", 300), "cannot be read (damaged)"),
    "a list": (lambda f: (f / "recipe.json").write_text("[1]"), "cannot be read (damaged)"),
    "another's": (lambda f: (f / "recipe.json").write_text('{"a": 1}'), "cannot be read (damaged)"),
    "not UTF-8": (lambda f: (f / "recipe.json").write_bytes(b"\xff"), "cannot be read (damaged)"),
    "a newer field": (lambda f: edit(f, lambda d: d["recipe"].update(new=1)), "unknown field new"),
    "a range": (lambda f: edit(f, lambda d: d["recipe"].update(epochs=0)), "epochs must be at"),
    "a text": (lambda f: edit(f, lambda d: d["recipe"].update(image_size="9")), "damaged: "),
    "a list for a recipe": (lambda f: edit(f, lambda d: d.update(recipe=[])), "(damaged)"),
    "another model": (lambda f: edit(f, lambda d: d["recipe"].update(model="No")), "model must be"),
    "an older run": (
        lambda f: edit(f, lambda d: [d["data"].pop(key) for key in ("class_names", "std")]),
        "lacks class_names, std: it was written by an older version; train-cifar --resume",
    ),
    "classes": (lambda f: edit(f, lambda d: d["data"].update(class_names=7)), "class_names must"),
    "a class": (lambda f: edit(f, lambda d: d["data"].update(class_names=[7])), "class_names must"),
    "statistics": (lambda f: edit(f, lambda d: d["data"].update(mean=[0.5])), "mean and std three"),
    "NaN": (lambda f: edit(f, lambda d: d["data"].update(std=[float("nan")] * 3)), "mean and std"),
    "a class less": (lambda f: edit(f, lambda d: d["data"]["class_names"].pop()), "another model?"),
    "half the weights": (lambda f: os.truncate(f / "model.safetensors", 999), "not a safetensors"),
    "no weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "not a safetensors file"),
    "a folder": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()),
        "model.safetensors: not a safetensors file",
    ),
    "other weights": (
        lambda f: save_file({"weight": torch.ones(2)}, f / "model.safetensors"),
        "is it another model?",
    ),
}  # fmt: skip


def answers(folder, capsys):
    """What evaluate and predict do with the folder of a run, and that neither changes it."""
    before = content(folder)
    for arguments in (["evaluate", folder], ["predict", folder, __file__]):
        code = cli.call(cli.choose, "ultimus", list(map(str, arguments)))
        assert content(folder) == before
        yield code, *capsys.readouterr()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_one_line_and_stays_as_it_is(folder, capsys, damage):
    change, message = DAMAGES[damage]
    change(folder)
    for code, out, err in answers(folder, capsys):
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert message in err
        assert str(folder) in err or "model must be" in err


@pytest.mark.parametrize("status", [*STATUSES, None])
def test_a_run_without_weights_says_why_and_what_to_do(folder, capsys, status):
    (folder / "model.safetensors").unlink()
    (folder / "status.json").write_text(json.dumps({"status": status}) if status else "")
    with RunDirectory(folder).open(resume=True):  # as a run that is still going has it
        for code, out, err in answers(folder, capsys):
            assert (code, out, err.count("\n")) == (2, "", 1), err
            if status:
                assert f"has no model.safetensors: the run is {status}: " in err
                assert ("train-cifar --resume" in err) == (status not in ("running", "non-finite"))
            else:
                assert "status.json cannot be read (damaged)" in err


def test_a_run_that_was_killed_is_to_be_resumed(folder, capsys):
    (folder / "model.safetensors").unlink()
    (folder / "status.json").write_text('{"status": "running"}')
    for code, _, err in answers(folder, capsys):
        assert code == 2
        assert "the run is interrupted (killed): train-cifar --resume brings it to its end" in err
