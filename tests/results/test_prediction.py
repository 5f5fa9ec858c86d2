import csv
import io
import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from data.pictures import blocks, palette_image
from PIL import Image

from ultimus_ignite import Recipe, cli, load_run, train
from ultimus_ignite.data import decoding
from ultimus_ignite.data.image_data import ImageData
from ultimus_ignite.data.pixels import UnreadableError
from ultimus_ignite.errors import DataError
from ultimus_ignite.results.prediction import find_files, predict_files

CLASSES = ("cat", "dog", "owl, the", "ship")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that knows four pictures; its folder was moved, and of its data nothing is left."""
    out = tmp_path_factory.mktemp("trained") / "run"
    images = torch.stack([torch.from_numpy(picture(seed)) for seed in range(4)]).permute(0, 3, 1, 2)
    many = images.repeat(16, 1, 1, 1).contiguous(), torch.arange(4).repeat(16)
    data = ImageData.measure("four", CLASSES, many, many)
    recipe = Recipe(epochs=8, batch_size=16, cutout=0, flip=0, max_lr=0.01, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ultimus_ignite.handlers.CurveRenderer.render", lambda *arguments: None)
        train(recipe, out=out, data=data)
    return load_run(out.rename(out.with_name("moved")))


def picture(seed):
    """RGB, uint8 (32, 32, 3)."""
    return blocks(seed)[..., :3]


def write(folder, seed, image=None, name=None, **options):
    path = folder / (name or f"{seed}.png")
    (image or Image.fromarray(picture(seed))).save(path, **options)
    return str(path)


@pytest.fixture
def command(run, tmp_path, capsys, monkeypatch):
    """`ultimus predict` of the run, in an empty folder: its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.formatwarning", None)  # put back what the command sets

    def call(*arguments):
        before = {path: path.read_bytes() for path in run.directory.path.rglob("*.*")}
        code = cli.call(
            cli.choose, "ultimus", ["predict", str(run.directory.path), *map(str, arguments)]
        )
        assert {path: path.read_bytes() for path in run.directory.path.rglob("*.*")} == before
        return code, *capsys.readouterr()

    return call


def colour_files(folder, seed):
    """The same picture in colour, in files of many kinds."""
    image = Image.fromarray(picture(seed))
    large = image.resize((4000, 3000), Image.Resampling.NEAREST)
    palette, _ = palette_image(blocks(seed))
    palette.info["transparency"] = 255  # of no pixel
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by 90 degrees
    yield write(folder, seed, name="rgb.png")
    yield write(folder, seed, name="jpeg.jpg", quality=95)
    yield write(folder, seed, image.convert("RGBA"), "rgba.png")
    yield write(folder, seed, image.convert("CMYK"), "cmyk.jpg", quality=95)
    yield write(folder, seed, image.convert("CMYK"), "cmyk.tif")
    yield write(folder, seed, palette, "palette.png", transparency=255)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    yield write(folder, seed, turned, "turned.png", exif=exif)
    frames = [Image.fromarray(picture(seed + 1))]
    for name in ("animated.png", "animated.tif", "animated.gif"):
        yield write(folder, seed, image, name, save_all=True, append_images=frames)
    yield write(folder, seed, large, "large.jpg", quality=90)
    yield write(folder, seed, image, "bitmap.bmp")


def grey_files(folder, seed):
    """The same picture in grey, in files of many kinds."""
    levels = blocks(seed, grey=True)[..., 0]
    image = Image.fromarray(levels)
    yield write(folder, seed, image, "grey.png")
    yield write(folder, seed, image, "grey.jpg", quality=95)
    yield write(folder, seed, image.convert("LA"), "grey-alpha.png")
    yield write(folder, seed, Image.fromarray(levels.astype(np.uint16) * 257), "grey-16.png")
    yield write(folder, seed, image.convert("RGB"), "as-rgb.png")


def black_and_white_files(folder, seed):
    """The same picture in black and white: the grey bits, and one without grey."""
    levels = (blocks(seed, grey=True)[..., 0] > 127).astype(np.uint8) * 255
    image = Image.fromarray(levels)
    yield write(folder, seed, image, "levels.png")
    yield write(folder, seed, image.convert("1"), "bits.png")
    yield write(folder, seed, image.convert("1"), "bits.tif")
    holes = np.zeros((32, 32, 4), dtype=np.uint8)
    holes[..., 3] = 255 - levels  # black where it is opaque, a white page elsewhere
    yield write(folder, seed, Image.fromarray(holes), "holes.png")
    palette, alphas = palette_image(holes)
    yield write(folder, seed, palette, "palette.png", transparency=bytes(alphas))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kinds", [colour_files, grey_files, black_and_white_files])
def test_a_picture_has_one_class_in_whatever_file_it_is(run, tmp_path, kinds, seed):
    paths = list(kinds(tmp_path, seed))
    answers = predict_files(run, paths, top=4)
    expected = dict(answers[0])
    for path, answer in zip(paths, answers, strict=True):
        assert answer[0].class_name == answers[0][0].class_name, path
        assert dict(answer) == pytest.approx(expected, abs=0.05), path


def test_the_pictures_are_told_apart(run, tmp_path):
    """Otherwise the same class in every file would show nothing."""
    paths = [write(tmp_path, seed) for seed in (2, 0, 3, 1)]
    best = [answer[0] for answer in predict_files(run, paths)]
    assert [name for name, _ in best] == [CLASSES[seed] for seed in (2, 0, 3, 1)]
    assert min(probability for _, probability in best) > 0.5


def test_the_probabilities_are_those_of_predict_in_any_number_of_batches(run, tmp_path):
    paths = [write(tmp_path, seed) for seed in range(37)]  # batches of 16
    expected = run.predict([Image.open(path) for path in paths])
    sizes = []
    with run.model.register_forward_pre_hook(lambda _, images: sizes.append(len(images[0]))):
        answers = predict_files(run, paths, top=9)
    assert sizes == [16, 16, 5]
    for path, row, answer in zip(paths, expected.probabilities, answers, strict=True):
        assert len(answer) == 4, path
        values = [probability for _, probability in answer]
        assert values == sorted(values, reverse=True)
        by_name = dict(zip(run.classes, row.tolist(), strict=True))
        assert dict(answer) == pytest.approx(by_name, abs=2e-6)
    assert [answer[0][0] for answer in predict_files(run, paths, top=1)] == expected.classes


def test_other_processes_give_the_same(run, tmp_path, monkeypatch):
    paths = [write(tmp_path, seed) for seed in range(20)]
    (tmp_path / "3.png").write_bytes(b"")
    here = predict_files(run, paths)
    monkeypatch.setattr(decoding, "_ALONE", 1e-9)
    monkeypatch.setattr(decoding, "_count_cores", lambda: 2)
    there = predict_files(run, paths)
    assert isinstance(there[3], UnreadableError)
    for a, b in zip(here[:3] + here[4:], there[:3] + there[4:], strict=True):
        assert dict(a) == pytest.approx(dict(b), abs=2e-6)


def test_files_folders_and_patterns_come_in_the_order_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.png", "b/1.png", "b/deep/0.png", "a/3.jpg", "a/[x].png", "b/labels.csv",
                 "b/.hidden", "z.png"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    places = ["z.png", "b", "gone.jpg", "a/[x].png", "*/*.jpg", "no/*.gif", "z.png"]
    found = find_files(places)
    assert found.paths == [
        "z.png", "b/1.png", "b/2.png", "b/deep/0.png", "gone.jpg", "a/[x].png", "a/3.jpg",
        "no/*.gif",
    ]  # fmt: skip
    assert found.passed_over == ["b/.hidden", "b/labels.csv"]
    everything = find_files(["**"]).paths
    assert sorted(everything) == sorted(set(everything))
    assert find_files([f"{tmp_path}/b/?.png"]).paths == [f"{tmp_path}/b/{n}.png" for n in (1, 2)]


def test_what_would_block_or_leads_nowhere_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for place in (tmp_path / "pipe.png", tmp_path):
        with pytest.raises(DataError, match="pipe or other special file"):
            find_files([str(place)])


def test_bad_files_are_a_line_each_and_the_others_go_on(command, tmp_path):
    write(tmp_path, 0)
    (tmp_path / "zero.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image\n" * 99)
    half = (tmp_path / "0.png").read_bytes()[:60]
    (tmp_path / "half.png").write_bytes(half)
    write(tmp_path, 1, Image.new("RGB", (1, 1)), "tiny.png")
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    names = ["zero.jpg", "0.png", "text.jpg", "half.png", "tiny.png", "broken.jpg", "gone\n.png"]
    code, out, err = command(*names)
    assert code == 2
    assert [line.partition(":")[0] for line in out.splitlines()] == ["0.png", "tiny.png"]
    *lines, last = err.splitlines()
    assert [line.partition(": not a readable image: ")[0] for line in lines] == [
        "zero.jpg", "text.jpg", "half.png", "broken.jpg", "gone .png",
    ]  # fmt: skip
    assert "an empty file" in lines[0]
    assert "none of the known image formats" in lines[1]
    assert "No such file" in lines[3]
    assert last == "ultimus: 5 of 7 files are not readable images"

    code, out, also = command("--json", *names)
    assert (code, also) == (2, err)
    found = json.loads(out)
    assert [row["path"] for row in found["predictions"]] == ["0.png", "tiny.png"]
    assert [row["path"] for row in found["unreadable"]] == [names[i] for i in (0, 2, 3, 5, 6)]
    assert all(row["reason"] for row in found["unreadable"])


def test_lines_table_and_object_say_the_same(run, command, tmp_path):
    for seed in range(3):
        write(tmp_path, seed)
    (tmp_path / "1.png").rename(tmp_path / 'a, "b".png')
    (tmp_path / "notes.txt").touch()
    code, out, err = command("--top", 2, "--json", tmp_path)
    assert (code, err) == (0, "passed over: 1 file or folder that is not an image (notes.txt)\n")
    rows = json.loads(out)["predictions"]
    assert [row["path"] for row in rows] == sorted(str(path) for path in tmp_path.glob("*.png"))
    for row, answer in zip(rows, predict_files(run, [row["path"] for row in rows]), strict=True):
        assert [(c["class"], c["probability"]) for c in row["classes"]] == [
            (name, pytest.approx(probability, abs=2e-6)) for name, probability in answer[:2]
        ]

    header, *table = csv.reader(io.StringIO(command("--top", 2, "--csv", tmp_path)[1]))
    assert header == ["path", "class_1", "probability_1", "class_2", "probability_2"]
    flat = [[row["path"], *(str(v) for c in row["classes"] for v in c.values())] for row in rows]
    assert table == flat

    lines = command("--top", 2, tmp_path)[1].splitlines()
    assert lines == [
        f"{row['path']}: "
        + ", ".join(f"{c['class']} {c['probability']:.2%}" for c in row["classes"])
        for row in rows
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected images after the folder of the run"),
        (["0.png", "--top", 0], "top must be at least 1, got 0"),
        (["0.png", "--json", "--csv"], "--json and --csv: give one of them"),
        (["empty"], "no images in empty"),
        (["closed"], "closed: Permission denied"),
    ],
)
def test_a_mistake_is_one_line(command, tmp_path, monkeypatch, arguments, message):
    write(tmp_path, 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(path):
        if str(path) == "closed":  # the tests may run as root, who may read anything
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    code, out, err = command(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert message in err


def test_what_a_model_prints_is_not_the_answer(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "chatty.py").write_text(
        "from ultimus_ignite.modules import UltimusNet\n\n"
        "def Net(**arguments):\n    print('hello')\n    return UltimusNet(**arguments)\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = shutil.copytree(run.directory.path, tmp_path / "run")
    description = json.loads((folder / "recipe.json").read_text())
    description["recipe"]["model"] = f"{tmp_path}/chatty.py:Net"
    (folder / "recipe.json").write_text(json.dumps(description))
    arguments = ["predict", "--json", str(folder), write(tmp_path, 0)]
    assert cli.call(cli.choose, "ultimus", arguments) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["predictions"]) == 1
    assert err == "hello\n"
