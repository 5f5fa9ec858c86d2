"""The report of runs on images whose classes, files and folders have hostile names."""

import json
import random
import re
import shutil
from base64 import b64decode
from dataclasses import asdict, replace
from html.parser import HTMLParser
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from browser import CHROMIUM, Browser
from PIL import Image
from torch import nn

from ultimus_ignite import Recipe, cli, load_run, train
from ultimus_ignite.commands import report
from ultimus_ignite.handlers.support.figures import save_lr_curves
from ultimus_ignite.handlers.support.lr_curve import LRCurve
from ultimus_ignite.modules import UltimusBlock, UltimusNet
from ultimus_ignite.recipe import RECIPES
from ultimus_ignite.results.evaluation import evaluate
from ultimus_ignite.results.report.attention import attention_maps, capture
from ultimus_ignite.results.report.examples import (
    MISTAKES,
    augmented_samples,
    frequent_confusions,
    load_data,
    worst_mistakes,
)
from ultimus_ignite.results.report.pictures import matrix, overlay, photo
from ultimus_ignite.results.report.recipes import compare
from ultimus_ignite.results.report.run_facts import read_facts

HOSTILE = "<img src=x onerror=document.title=1>"
EMPTY_ELEMENTS = {"meta", "img", "line"}


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in EMPTY_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def pixels_of(uri):
    return np.asarray(Image.open(BytesIO(b64decode(uri.partition(",")[2]))))


def state_of(folder):
    return {p: (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two runs, `first` of tokens and one of classic, on a folder of noise in three classes."""
    folder = tmp_path_factory.mktemp("report")
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for label in ("cat", "dog & <b>", HOSTILE):
            images = folder / "images" / split / label
            images.mkdir(parents=True)
            for number in range(count):
                noise = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(noise).save(images / f"{number}.png")
    common = {"data": f"folder:{folder / 'images'}", "data_dir": str(folder / "cache")}
    common |= {"epochs": 2, "device": "cpu", "batch_size": 12}
    train(replace(RECIPES["tokens"], **common), out=folder / "first")
    train(Recipe(**common, model_args={"pool_first": False}), out=folder / HOSTILE)
    curve = LRCurve()
    for exponent in range(-8, 3):
        curve.add(10.0**exponent, loss=2.0 - 1.0 / (1.0 + (exponent + 3) ** 2))
    save_lr_curves([curve], folder / "first", title="test")
    return folder


@pytest.fixture(scope="module")
def page(place):
    """The report of both runs."""
    before = state_of(place / "first"), state_of(place / HOSTILE)
    runs, out = [str(place / "first"), str(place / HOSTILE)], place / "report.html"
    assert cli.call(report.main, "ultimus report", [*runs, "--out", str(out)]) == 0
    assert before == (state_of(place / "first"), state_of(place / HOSTILE))
    return out


@pytest.fixture
def write(tmp_path, capsys):
    """The command in this process: its exit code, its error stream, and the page."""

    def run(*runs):
        out = tmp_path / "page.html"
        code = cli.call(report.main, "ultimus report", [*map(str, runs), "--out", str(out)])
        return code, capsys.readouterr().err, Page(out) if code == 0 else None

    return run


@pytest.fixture
def copy(place, tmp_path):
    return shutil.copytree(place / "first", tmp_path / "copy")


def test_it_tells_the_result_with_its_interval(place, page):
    text = Page(page).text
    status = json.loads((place / "first" / "status.json").read_text())
    n, share, z = 12, status["test_accuracy"], 1.959963984540054
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    assert f"{share:.2%}\n" in text
    assert f"{middle - half:.2%} to {middle + half:.2%}" in text
    assert f"{status['test_loss']:.4f}" in text


def test_it_has_every_part_of_both_runs(page):
    content = Page(page)
    assert "What is missing" not in content.text
    for part in ("Confusion matrix", "The most confident mistakes", "Augmented samples"):
        assert content.text.count(part) == 2, part
    for part in ("Training loss", "Test accuracy", "Learning rate", "Range test of first"):
        assert part in content.text
    assert content.text.count("Total params") == 2
    panels = [svg["aria-label"] for svg in content.all("svg") if "aria-label" in svg]
    assert f"Test loss over the epochs of first, {HOSTILE}" in panels
    blocks = (4 + 1) * 3  # of both models, for an image of each class
    assert sum(img["alt"].startswith("Attention of") for img in content.all("img")) == blocks


def test_names_are_text_and_nothing_is_asked_of_the_network(page):
    content = Page(page)
    assert content.text.count(HOSTILE) > 10
    assert "dog & <b>" in content.text
    assert content.all("script") == content.all("link") == content.all("b") == []
    for tag, attributes in content.elements:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), attributes
    assert "url(http" not in page.read_text()
    [policy] = [m["content"] for m in content.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_every_picture_has_an_alternative_text(page):
    content = Page(page)
    assert len(content.all("img")) > 40
    assert all(img["alt"] for img in content.all("img"))
    assert all(s.get("aria-label") or s["aria-hidden"] == "true" for s in content.all("svg"))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_a_browser_shows_it_without_an_error_or_a_request(page, tmp_path):
    browser = Browser(tmp_path / "profile")
    try:
        browser.show(390, "dark")
        browser.open(page)
        complaints = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        assert [event for event in browser.events if event["method"] in complaints] == []
        sent = [e["params"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
        urls = {request["request"]["url"].partition(":")[0] for request in sent}
        assert urls == {"file", "data"}
        assert sum(r["request"]["url"].startswith("file") for r in sent) == 1
        assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        assert browser.evaluate("document.title").startswith("first, <img")
        colours = []
        for scheme in ("light", "dark"):
            browser.show(1400, scheme)
            colours.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert colours == ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]
    finally:
        browser.close()


def test_without_its_data_a_run_has_the_rest(copy, write):
    description = json.loads((copy / "recipe.json").read_text())
    description["data"]["name"] = "folder:/nowhere"
    (copy / "recipe.json").write_text(json.dumps(description))
    code, _, content = write(copy)
    assert code == 0
    missing = "Confusion matrix, mistakes, augmented samples and attention maps are left out: "
    assert f"{missing}/nowhere: No such file or directory" in content.text
    assert "The most confident mistakes" not in content.text
    assert "Total params" in content.text
    assert "Test accuracy" in content.text


def test_other_images_than_those_of_the_run_are_not_shown(copy, write):
    description = json.loads((copy / "recipe.json").read_text())
    description["data"]["sha256"] = "0" * 64
    (copy / "recipe.json").write_text(json.dumps(description))
    _, _, content = write(copy)
    assert "the images are not those that the run was trained on" in content.text
    assert "The most confident mistakes" not in content.text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("recipe.json", None, r"recipe\.json cannot be read \(No such file or directory\)"),
        ("recipe.json", b'{"recipe": {', r"recipe\.json cannot be read \(damaged\)"),
        ("status.json", None, r"status\.json cannot be read \(No such file or directory\)"),
        ("history.csv", None, r"history\.csv cannot be read \(No such file or directory\)"),
        ("history.csv", b"\xff\0,", r"history\.csv cannot be read"),
        ("history.csv", b"epoch,iteration,lr,seconds\n1,2,0.1,x\n", "could not convert"),
        ("lr_finder.csv", b"a,b\n1,2\n", r"lr_finder\.csv is not a range test"),
        ("lr_finder.csv", b"repeat,iteration,lr,loss,smoothed_loss\n1,1,2\n", "lr_finder"),
        ("log.txt", b"\xff", r"log\.txt cannot be read"),
    ],
)
def test_a_damaged_file_is_one_sentence(copy, name, content, said):
    (copy / name).unlink() if content is None else (copy / name).write_bytes(content)
    [problem] = read_facts(copy, "copy").problems
    assert re.search(said, problem)
    assert "\n" not in problem


def test_a_run_that_was_killed_is_shown_as_far_as_it_came(copy, write):
    (copy / "model.safetensors").unlink()
    (copy / "status.json").write_text('{"status": "running", "pid": 1}')
    lines = (copy / "history.csv").read_text().splitlines(keepends=True)
    (copy / "history.csv").write_text("".join(lines[:2]))
    before = state_of(copy)
    _, _, content = write(copy)
    assert "interrupted (killed)" in content.text
    assert "1 of 2" in content.text
    assert "copy has no model.safetensors: the run is interrupted (killed)" in content.text
    assert f"{float(lines[1].split(',')[6]):.2%}" in content.text
    assert state_of(copy) == before


def test_of_files_of_another_program_it_shows_what_can_be_shown(copy, write):
    foreign = {"recipe": {"model": 1, "seed": [], "image_size": "x"}, "versions": 3}
    foreign["data"] = {"name": {}, "test": "x", "class_names": 1, "mean": 2, "std": 3}
    (copy / "recipe.json").write_text(json.dumps(foreign))
    status = {"status": [], "test_accuracy": 0.5, "test_loss": "x"}
    (copy / "status.json").write_text(json.dumps(status))
    for name in ("history.csv", "lr_finder.csv", "log.txt"):
        (copy / name).write_bytes(b"\xff")
    code, _, content = write(copy)
    assert code == 0
    assert "The model is left out: " in content.text
    assert "No run has a history." in content.text


@pytest.mark.parametrize("runs", [["nowhere"], ["first", "images"], []])
def test_what_is_no_run_is_one_line_and_the_older_page_stays(place, write, tmp_path, runs):
    (tmp_path / "page.html").write_text("older")
    code, error, _ = write(*(place / run for run in runs))
    assert code == 2
    assert error.startswith("ultimus report: ")
    assert error.count("\n") == 1
    assert (tmp_path / "page.html").read_text() == "older"


def test_a_page_that_cannot_be_written_is_one_line(copy, tmp_path, capsys):
    for out in (tmp_path, copy / "log.txt" / "page.html"):
        assert cli.call(report.main, "ultimus report", [str(copy), "--out", str(out)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_the_fields_that_differ_are_those_that_were_changed():
    draw = random.Random(0)
    for _ in range(20):
        name = draw.choice(list(RECIPES))
        base = {**asdict(RECIPES[name]), **RECIPES[name].sizes()}
        changes = {"epochs": 7, "flip": 0.25, "seed": 3, "precision": "float16", "init": "x"}
        chosen = draw.sample(sorted(changes), draw.randrange(4))
        names, fields = compare([base | {key: changes[key] for key in chosen}])
        assert names == [name]
        assert sorted(field.name for field in fields if field.differs) == sorted(chosen)
        assert {f.name for f in fields if f.is_changed[0]} == set(chosen)


def test_runs_that_differ_from_each_other_alone():
    both = [asdict(Recipe()), asdict(Recipe(epochs=2))]
    _, fields = compare(both)
    [epochs] = [field for field in fields if field.differs and field.name == "epochs"]
    assert (epochs.named, epochs.values, epochs.is_changed) == (["24"], ["24", "2"], [False, True])


def data_of(run):
    source = run.description["data"]
    return load_data(run.recipe, source["name"], source["sha256"])


def test_the_mistakes_are_those_with_the_highest_wrong_probability(place):
    run = load_run(place / "first", device="cpu")
    data = data_of(run)
    batches = data.measured.batches
    evaluation = evaluate(run, batches.images, batches.labels)
    probabilities = run.predict(run.normalize(batches.images)).probabilities.tolist()
    expected = []
    for row, label in zip(probabilities, batches.labels.tolist(), strict=True):
        best = max(row)
        if row.index(best) != label:
            names = data.classes[label], data.classes[row.index(best)]
            expected.append((-best, f"{names[0]}, predicted as {names[1]}: {best:.1%}"))
    captions = [mistake.caption for mistake in worst_mistakes(data, evaluation)]
    assert captions == [caption for _, caption in sorted(expected)][:MISTAKES]
    assert captions


def test_the_confusions_are_the_largest_numbers_beside_the_diagonal():
    draw = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 9, (25, 25), generator=draw)
    names = [f"class {number}" for number in range(25)]
    evaluation = SimpleNamespace(confusion=counts, per_class=dict.fromkeys(names))
    expected = sorted(int(counts[i, j]) for i in range(25) for j in range(25) if i != j)
    shown = frequent_confusions(evaluation)
    assert [count for _, _, count in shown] == expected[::-1][:20]
    for true, predicted, count in shown:
        assert counts[names.index(true), names.index(predicted)] == count


def test_without_augmentation_the_samples_are_the_images(place):
    run = load_run(place / "first", device="cpu")
    plain = replace(run.recipe, flip=0.0, cutout=0.0, crop_padding=0)
    source = run.description["data"]
    data = load_data(plain, source["name"], source["sha256"])
    shown = {pixels_of(sample.picture).tobytes() for sample in augmented_samples(data)}
    images = data.stream.images[:].permute(0, 2, 3, 1).contiguous().numpy()
    assert shown < {image.tobytes() for image in images}


def test_over_features_the_maps_are_the_blocks_own():
    """Oracle: the forward pass of UltimusNet, block by block."""
    torch.manual_seed(0)
    model = UltimusNet(num_classes=3).eval()
    images = torch.randn(2, 3, 32, 32)
    run = FakeRun(model)
    captured = capture(run, images)
    with torch.no_grad():
        x = model.features(images)
        for name, block in model.blocks.named_children():
            normed = F.layer_norm(x, x.shape[-1:])
            torch.testing.assert_close(captured[f"blocks.{name}"][1], block.attention(normed))
            x = x + block(normed)
    assert not any(module._forward_pre_hooks for module in model.modules())
    maps = attention_maps(run, images)["blocks.0"]
    np.testing.assert_allclose(maps[1].numbers, captured["blocks.0"][1][1])


def test_of_images_in_several_rows_of_tokens_the_map_is_the_mean():
    torch.manual_seed(0)
    block = UltimusBlock(8, 4, over="tokens")
    model = nn.Sequential(nn.Unflatten(1, (3, 5, 8)), block)
    rows = torch.randn(2, 3 * 5 * 8)
    weights = capture(FakeRun(model), rows)["1"][1]
    own = [block.attention(row) for row in rows.view(2, 3, 5, 8).unbind(1)]
    torch.testing.assert_close(weights, sum(own) / 3)


class FakeRun:
    """As much of a `LoadedRun` as attention needs."""

    def __init__(self, model):
        self.model = model

    def normalize(self, images):
        return images

    @torch.no_grad()
    def logits(self, images):
        return self.model(images)


def test_over_tokens_the_map_is_the_row_of_the_middle(place):
    run = load_run(place / "first", device="cpu")
    pixels = data_of(run).measured.batches.images[:2]
    block, weights = capture(run, pixels)["stages.10.block"]
    assert (block.over, weights.shape) == ("tokens", (2, 16, 16))
    maps = attention_maps(run, pixels)["stages.10.block"]
    for shown, whole in zip(maps, weights, strict=True):
        np.testing.assert_allclose(np.ravel(shown.numbers), whole[2 * 4 + 2])


def test_the_colour_lies_where_the_weight_is():
    weights = torch.tensor([[0.0, 0.0], [0.25, 1.0]])
    shown = pixels_of(overlay(torch.full((3, 32, 32), 200, dtype=torch.uint8), weights, (0, 1)))
    redness = shown[..., 0].astype(int) - shown[..., 2]
    cells = redness.reshape(2, 64, 2, 64).mean(axis=(1, 3))
    assert cells[1, 1] > cells[1, 0] > 20 > abs(cells[0, 0])
    frame = np.ones((64, 64), dtype=bool)
    frame[2:62, 2:62] = False
    white = shown.min(axis=-1) > 200  # of a JPEG
    assert np.array_equal(white[:64, 64:], frame)
    assert white.sum() == frame.sum()
    assert pixels_of(matrix(weights))[..., 3].tolist() == [[0, 0], [64, 255]]


def test_a_small_photo_is_exact_and_a_large_one_small():
    draw = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 32, 32), generator=draw, dtype=torch.uint8)
    assert np.array_equal(pixels_of(photo(image)), image.permute(1, 2, 0))
    large = photo(torch.zeros(3, 500, 500, dtype=torch.uint8))
    assert large.startswith("data:image/jpeg;base64,")
    assert pixels_of(large).shape == (128, 128, 3)
