import dataclasses
import hashlib
import io
import json
import random
import re
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from processes import call
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ultimus_ignite import load_run
from ultimus_ignite.data.digits import load_digits
from ultimus_ignite.networks.weights_file import METADATA_KEY
from ultimus_ignite.results import export
from ultimus_ignite.results.export import export_run
from ultimus_ignite.results.export_formats import FORMATS, FileFormat
from ultimus_ignite.results.export_graph import ExportError, ExportGraph

NEEDS = "pip install onnx onnxscript onnxruntime"
HOME = str(Path(__file__).parents[2]).encode()


def digests(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a run that is evaluated with mirror images."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    flags = ["--data", "digits", "--epochs", 2, "--device", "cpu", "--mirror"]
    answer = call("train-cifar", *flags, "--out", out, cwd=out.parent)
    assert answer.returncode == 0, answer.stderr
    return out


@pytest.fixture
def run(folder):
    return load_run(folder, device="cpu")


@pytest.fixture(scope="module")
def onnx_file(folder, tmp_path_factory):
    """The run as ONNX from raw pixels to probabilities, and what the command said."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=NEEDS)
    place, before = tmp_path_factory.mktemp("onnx"), digests(folder)
    answer = call("ultimus", "export", folder, "--format", "onnx", "--input", "uint8", cwd=place)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert digests(folder) == before
    assert [path.name for path in place.iterdir()] == ["digits.onnx"]  # no weights beside it
    return place / "digits.onnx", answer.stdout


@pytest.fixture(scope="module")
def pt2_file(folder, tmp_path_factory):
    """The run as a torch.export file, from normalised images to logits."""
    path = tmp_path_factory.mktemp("pt2") / "digits.pt2"
    exported = export_run(load_run(folder, device="cpu"), path, file_format="torch-export")
    assert exported.difference < 1e-5
    assert exported.from_evaluation == 0
    return path


def random_pixels(count, seed):
    generator = torch.Generator().manual_seed(seed)
    images = load_digits().test_images
    return images[torch.randint(len(images), (count,), generator=generator)]


def test_onnx_takes_raw_pixels_of_any_number_of_images(onnx_file, run):
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_file[0], providers=["CPUExecutionProvider"])
    for count in (1, 7, 20):
        pixels = random_pixels(count, seed=count)
        (found,) = session.run(["probabilities"], {"images": pixels.numpy()})
        right = run.predict(run.normalize(pixels)).probabilities
        torch.testing.assert_close(torch.from_numpy(found), right, atol=1e-5, rtol=0)


def test_torch_export_takes_normalised_images_of_any_number(pt2_file, run):
    loaded = torch.export.load(pt2_file).module()
    for count in (1, 7, 20):
        images = run.normalize(random_pixels(count, seed=count))
        torch.testing.assert_close(loaded(images), run.logits(images), atol=1e-5, rtol=0)


def test_the_command_says_what_was_compared(onnx_file):
    lines = onnx_file[1].splitlines()
    words = "100 test images of digits: the probabilities differ from the model's by at most"
    assert re.fullmatch(rf"{words} \d\.\de-\d\d", lines[0])
    assert lines[1:] == [
        "mirrored: an output is the mean for the image and its mirror image", "digits.onnx"
    ]  # fmt: skip


def test_the_files_say_what_they_take_and_give(folder, onnx_file, pt2_file, run, tmp_path):
    import onnx

    weights = tmp_path / "digits.safetensors"
    export_run(run, weights, file_format="safetensors")
    with safe_open(weights, "pt") as file:
        described = [file.metadata()[METADATA_KEY]]
    extra = {METADATA_KEY: ""}
    torch.export.load(pt2_file, extra_files=extra)
    described.append(extra[METADATA_KEY])
    described += [prop.value for prop in onnx.load(onnx_file[0]).metadata_props]
    of_the_run = json.loads((folder / "recipe.json").read_text())["data"]
    for text, given in zip(described, ["float32", "float32", "uint8"], strict=True):
        assert json.loads(text) == {
            "model": "UltimusNet",
            "model_args": {},
            "image_size": 32,
            "class_names": list("0123456789"),
            "mean": of_the_run["mean"],
            "std": of_the_run["std"],
            "mirror": True,
            "input": given,
        }
    own = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, own[key]) for key, tensor in load_file(weights).items())


def test_no_path_of_this_machine_is_in_a_file(onnx_file, pt2_file):
    for path in (onnx_file[0], pt2_file):
        assert HOME not in path.read_bytes()


def flip(tensor):
    """Change the sign of one weight, at random among the half that are not near zero."""
    values = tensor.reshape(-1)
    largest = values.abs().topk((len(values) + 1) // 2).indices.tolist()
    values[random.choice(largest)] *= -1


def flip_onnx(path):
    import onnx

    model = onnx.load(path)
    weights = next(w for w in model.graph.initializer if w.name.endswith("classifier.weight"))
    tensor = torch.from_numpy(onnx.numpy_helper.to_array(weights).copy())
    flip(tensor)
    weights.CopyFrom(onnx.numpy_helper.from_array(tensor.numpy(), weights.name))
    onnx.save(model, path)


def flip_pt2(path):
    extra = {METADATA_KEY: ""}
    program = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra)
    with torch.no_grad():
        flip(program.state_dict["model.classifier.weight"])
    file = io.BytesIO()
    torch.export.save(program, file, extra_files=extra)
    path.write_bytes(file.getvalue())


def flip_safetensors(path):
    weights = load_file(path)
    flip(weights[random.choice([key for key in weights if key.endswith("weight")])])
    save_file(weights, path)


FLIPS = {"onnx": flip_onnx, "torch-export": flip_pt2, "safetensors": flip_safetensors}


@pytest.mark.parametrize("file_format", FLIPS)
def test_a_flipped_weight_is_refused(file_format, folder, run, request, monkeypatch, tmp_path):
    random.seed(0)
    if file_format != "safetensors":  # written by the fixtures already; making it again takes long
        name = {"onnx": "onnx_file", "torch-export": "pt2_file"}[file_format]
        path = request.getfixturevalue(name)
        content = (path if file_format == "torch-export" else path[0]).read_bytes()
        load = FORMATS[file_format].load
        encoded = FileFormat(lambda graph, metadata: content, load)
        monkeypatch.setitem(FORMATS, file_format, encoded)
    options = {"file_format": file_format}
    options["input"] = "uint8" if file_format == "onnx" else "float32"
    export_run(run, tmp_path / "right", **options)

    def write(path, content):
        path.write_bytes(content)
        FLIPS[file_format](path)

    monkeypatch.setattr(export, "write_new_file", write)
    for _ in range(1 if file_format == "torch-export" else 5):  # which takes a second each
        with pytest.raises(ExportError, match="differ by .* nothing is kept"):
            export_run(run, tmp_path / "wrong", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["right"]


def test_a_file_that_gives_no_numbers_is_refused(run, monkeypatch, tmp_path):
    def load(path, graph):
        return lambda images: torch.full((len(images), 10), torch.nan)

    monkeypatch.setitem(FORMATS, "broken", FileFormat(lambda graph, metadata: b"", load))
    with pytest.raises(ExportError, match="differ by nan"):
        export_run(run, tmp_path / "x", file_format="broken")
    assert not any(tmp_path.iterdir())


class Rounding(nn.Module):
    """Float32 takes 3e-5 from its logits, which are below 3."""

    def forward(self, images):
        return (images.flatten(1)[:, 300:310] + 1000) - 1000


@pytest.mark.parametrize(("shift", "refused"), [(0, False), (1e-2, True)])
def test_a_file_may_differ_by_what_float32_takes_from_the_model(
    run, monkeypatch, tmp_path, shift, refused
):
    run = dataclasses.replace(run, model=Rounding())

    def exact(images):
        return Rounding()(images.double()).float() + shift

    def load(path, graph):
        return lambda images: (exact(images) + exact(images.flip(-1))) / 2

    monkeypatch.setitem(FORMATS, "exact", FileFormat(lambda graph, metadata: b"", load))
    refusal = pytest.raises(ExportError, match="nothing is kept") if refused else nullcontext()
    with refusal:
        difference = export_run(run, tmp_path / "x", file_format="exact").difference
        assert 1e-5 < difference < 1e-4


def test_a_run_without_its_data_is_tried_on_photos(run, tmp_path):
    recipe = dataclasses.replace(run.recipe, data_dir=str(tmp_path))
    for name in ("cifar10", f"folder:{tmp_path / 'gone'}", "mine"):
        moved = dataclasses.replace(run, recipe=recipe, description={"data": {"name": name}})
        path = tmp_path / "digits.safetensors"
        words = export_run(moved, path, file_format="safetensors").images
        reason = f"because the images of {name} are not here"
        assert words == f"100 parts of scikit-learn's photos, {reason}"
        path.unlink()
    assert not any(tmp_path.iterdir())


class OfTwo(nn.Module):
    """A network that takes two images, not any number."""

    def forward(self, images):
        return images.reshape(2, -1)


def test_a_model_that_cannot_be_traced_is_one_line():
    graph = ExportGraph(OfTwo(), normalize=None, mirror=False, image_size=8)
    with pytest.raises(ExportError, match="torch.export cannot trace OfTwo: ") as error:
        graph.trace()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--format", "safetensors", "--input", "uint8"], "leave out --input uint8"),
        (["--format", "torch-export", "--out", "there"], "there exists: remove it"),
        (["--format", "safetensors", "--out", "a" * 300], "choose another --out"),
        ([], "--format"),
    ],
)
def test_a_mistake_is_one_line(folder, tmp_path, flags, says):
    (tmp_path / "there").write_text("mine")
    answer = call("ultimus", "export", folder, *flags, cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.count("\n") == 1
    assert says in answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_text() == "mine"


def test_a_folder_without_a_run_is_one_line(tmp_path):
    answer = call("ultimus", "export", "nowhere", "--format", "onnx", cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("ultimus: nowhere")
    assert not any(tmp_path.iterdir())


def test_missing_packages_are_one_line(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=NEEDS):
        export_run(run, tmp_path / "x.onnx", file_format="onnx")
    assert not any(tmp_path.iterdir())
