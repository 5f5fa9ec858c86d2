import csv
import json
import shutil
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics
from torch import nn

from ultimus_ignite import Recipe, cli, load_run, train
from ultimus_ignite.commands.evaluate import table
from ultimus_ignite.data.augment import Normalize
from ultimus_ignite.data.sources import load
from ultimus_ignite.results.evaluation import calibration_error, evaluate
from ultimus_ignite.results.interval import wilson_interval


@pytest.fixture(scope="module", autouse=True)
def no_curves():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ultimus_ignite.handlers.CurveRenderer.render", lambda *arguments: None)
        yield


@pytest.fixture(scope="module")
def digits():
    """Few of them."""
    data = load("digits", "unused")
    return replace(
        data,
        train_images=data.train_images[:100],
        train_labels=data.train_labels[:100],
        test_images=data.test_images[:70],
        test_labels=data.test_labels[:70],
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of digits."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train(Recipe(data="digits", epochs=2, device="cpu"), out=out)
    return load_run(out)


def any_run(run, seed):
    """The run with another model and other classes, drawn at random; images and labels for it."""
    chance = torch.Generator().manual_seed(seed)
    size, num_classes, count = (int(torch.randint(2, 30, (), generator=chance)) for _ in range(3))
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, num_classes))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1, generator=chance)
    other = replace(
        run,
        model=model.eval(),
        recipe=replace(run.recipe, batch_size=7),
        classes=tuple(f"class {number}" for number in range(num_classes)),
        normalize=Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
    )
    shape = (count, 3, size, size)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=chance)
    return other, images, torch.randint(num_classes, (count,), generator=chance)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 64},
        {"batch_size": 50, "val_fraction": 0.3, "epochs": 3},
        {"model": "UltimusTokenNet", "batch_size": 32, "epochs": 1},
        {"model": "UltimusTokenNet", "batch_size": 50, "precision": "bfloat16", "mirror": True},
    ],
)
def test_the_numbers_are_those_of_the_log(tmp_path, digits, changes):
    recipe = Recipe(**{"epochs": 2, "device": "cpu", **changes})
    trained = train(recipe, out=tmp_path / "run", data=digits)
    status = trained.directory.read_status()
    found = evaluate(load_run(tmp_path / "run"), digits.test_images, digits.test_labels)
    assert (found.loss, found.accuracy) == (status["test_loss"], status["test_accuracy"])
    assert found.count == 70
    line = f"loss: {found.loss:.4f}, Accuracy: {found.confusion.trace()}/70 ({found.accuracy:.2%})"
    log = (tmp_path / "run" / "log.txt").read_text()
    assert line in [text for text in log.splitlines() if "Test set" in text][-1]


@pytest.mark.filterwarnings("ignore:The number of unique classes")  # scikit-learn 1.7
@pytest.mark.parametrize("seed", range(6))
def test_the_measures_are_those_of_scikit_learn(run, seed):
    run, images, labels = any_run(run, seed)
    found = evaluate(run, images, labels)
    with torch.inference_mode():
        logits = run.model(run.normalize(images))
    classes, predicted = np.arange(len(run.classes)), logits.argmax(dim=1).numpy()
    probabilities = logits.double().softmax(dim=1).numpy()
    assert found.labels.equal(labels)
    assert found.count == len(labels)
    assert found.accuracy == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert found.loss == pytest.approx(metrics.log_loss(labels, probabilities, labels=classes))
    np.testing.assert_allclose(found.probabilities, probabilities, atol=1e-5)
    confusion = metrics.confusion_matrix(labels, predicted, labels=classes)
    np.testing.assert_array_equal(found.confusion, confusion)
    scores = metrics.precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0
    )
    found_scores = np.array([astuple(each) for each in found.per_class.values()])
    np.testing.assert_allclose(found_scores.T, scores)
    assert tuple(found.per_class) == run.classes
    first, second, third, *_ = table(found).splitlines()
    assert first.startswith(f"accuracy: {found.accuracy:.2%} (")
    if len(classes) > 10:
        assert second == f"top-5 accuracy: {found.top5:.2%}"
        top5 = metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=classes)
        assert found.top5 == pytest.approx(top5)
    else:
        third = second
        assert found.top5 is None
    assert third == f"loss: {found.loss:.4f}"


def test_random_runs_have_few_and_many_classes(run):
    sizes = [len(any_run(run, seed)[0].classes) for seed in range(6)]
    assert min(sizes) <= 10 < max(sizes)


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (0, 40), (23, 40), (8108, 10000)])
def test_the_interval_is_wilsons(right, count):
    """Oracle: both bounds are where the share that was seen is 1.96 deviations away."""
    bounds = wilson_interval(right, count)
    assert bounds[0] <= right / count <= bounds[1]
    for bound in bounds:
        deviation = 1.959963984540054 * (bound * (1 - bound) / count) ** 0.5
        assert abs(right / count - bound) == pytest.approx(deviation, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_error_is_that_of_a_loop_over_bins(seed):
    chance = np.random.default_rng(seed)
    probabilities = chance.dirichlet([0.3] * 4, size=200)
    probabilities[0] = (1, 0, 0, 0)
    labels = chance.integers(0, 4, 200)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for low in range(15):
        inside = (low / 15 <= confidence) & (confidence < (low + 1) / 15 + (low == 14))
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            expected += inside.sum() / 200 * gap
    found = calibration_error(torch.from_numpy(probabilities), torch.from_numpy(labels))
    assert found == pytest.approx(expected)


@pytest.fixture
def command(run, tmp_path, capsys, monkeypatch):
    """`ultimus evaluate` of the run, in an empty folder: its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.formatwarning", None)  # put back what the command sets

    def call(*flags):
        before = {path: path.read_bytes() for path in run.directory.path.rglob("*.*")}
        arguments = ["evaluate", run.directory.path, "--data-dir", "cache", *flags]
        code = cli.call(cli.choose, "ultimus", list(map(str, arguments)))
        assert {path: path.read_bytes() for path in run.directory.path.rglob("*.*")} == before
        return code, *capsys.readouterr()

    return call


def folder_of(place, classes, count=4):
    """``place/<class>/*.png``, with digits of the class of that name."""
    data = load("digits", "unused")
    for name in classes:
        (place / name).mkdir(parents=True)
        for number, image in enumerate(data.test_images[data.test_labels == int(name)][:count]):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / name / f"{number}.png")
    return place


def test_json_is_the_only_output(run, command, tmp_path):
    code, out, err = command("--json")
    assert (code, err) == (0, "")
    found, status = json.loads(out), run.directory.read_status()
    assert found["data"] == "digits, 360 test images of 10 classes"
    assert (found["loss"], found["accuracy"]) == (status["test_loss"], status["test_accuracy"])
    assert found["interval"] == list(wilson_interval(round(360 * found["accuracy"]), 360))
    assert (found["count"], found["top5"]) == (360, None)
    assert [*found["per_class"]] == list(run.classes)
    assert found["per_class"]["3"].keys() == {"precision", "recall", "f1", "count"}
    assert np.sum(found["confusion"]) == 360
    assert [*tmp_path.iterdir()] == []


def test_the_table_and_the_confusion_matrix_show_the_same(run, command, tmp_path):
    code, out, err = command("--out", "new/out")
    assert (code, err) == (0, "")
    found = json.loads(command("--json")[1])
    assert f"accuracy: {found['accuracy']:.2%} (" in out
    assert f"loss: {found['loss']:.4f}\n" in out
    for name, scores in found["per_class"].items():
        shares = (f"{scores[key]:.2%}" for key in ("precision", "recall", "f1"))
        assert [name, str(scores["count"]), *shares] in [line.split() for line in out.splitlines()]
    assert out.endswith("new/out/confusion.png\nnew/out/confusion.csv\n")
    with (tmp_path / "new" / "out" / "confusion.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header[1:] == [row[0] for row in rows] == list(run.classes)
    assert [list(map(int, row[1:])) for row in rows] == found["confusion"]
    with Image.open(tmp_path / "new" / "out" / "confusion.png") as picture:
        assert picture.format == "PNG"


def test_other_data_match_by_the_names_of_their_classes(run, command, tmp_path):
    folder = folder_of(tmp_path / "some", ["7", "3"])
    code, out, err = command("--data", "folder:some", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["data"] == f"folder:{folder}, 8 images of 2 classes"  # all, not a fifth of them
    counts = {name: scores["count"] for name, scores in found["per_class"].items()}
    assert counts == dict.fromkeys(run.classes, 0) | {"3": 4, "7": 4}
    pictures = [Image.open(path) for path in sorted((folder / "7").iterdir())]
    guessed = run.predict(pictures).classes
    assert found["confusion"][7] == [guessed.count(name) for name in run.classes]


def test_of_divided_data_the_test_images_count_else_the_validation_images(command, tmp_path):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        folder_of(tmp_path / "all" / split, "123", count)
    assert "3 test images of 3 classes" in command("--data", "folder:all")[1]
    shutil.rmtree(tmp_path / "all" / "test")
    assert "6 validation images of 3 classes" in command("--data", "folder:all")[1]


def test_files_that_are_no_images_are_left_out_if_they_may_be(command, tmp_path):
    folder_of(tmp_path / "some", "123")
    (tmp_path / "some" / "1" / "0.png").write_bytes(b"no image")
    code, out, err = command("--data", "folder:some")
    assert (code, out) == (2, "")
    assert "some/1/0.png: not a readable image" in err
    code, out, err = command("--data", "folder:some", "--skip-unreadable", "--json")
    assert (code, json.loads(out)["count"]) == (0, 11)
    assert err == f"left out: 1 unreadable file ({tmp_path}/some/1/0.png)\n"


@pytest.mark.parametrize(
    ("count", "named"),
    [
        (1, "owl0"),
        (5, "owl0, owl1, owl2, owl3, owl4"),
        (6, "owl0, owl1, owl2, owl3, owl4, ..."),
    ],
)
def test_classes_that_the_run_lacks_are_named_up_to_five(command, tmp_path, count, named):
    folder = folder_of(tmp_path / "some" / "train", "1234567")
    for number in range(count):
        folder.joinpath(str(number + 1)).rename(folder / f"owl{number}")
    code, out, err = command("--data", "folder:some")
    assert (code, out) == (2, "")
    assert f"{tmp_path}/some: the run has no class {named}; its 10 classes are 0, 1, " in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("flags", [["--data", "digit"], ["--data", "folder:no"], ["--out", "file"]])
def test_a_mistake_is_one_line(command, tmp_path, flags):
    (tmp_path / "file").touch()
    code, out, err = command(*flags)
    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("flags", [[], ["--data", "folder:data"]])
def test_own_data_that_have_changed_are_said_and_not_measured_as_new(
    tmp_path, capsys, monkeypatch, flags
):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "data", "01", 10)
    recipe = Recipe(data="folder:data", data_dir="cache", epochs=3, device="cpu")
    train(recipe, out=tmp_path / "run")
    capsys.readouterr()
    assert cli.call(cli.choose, "ultimus", ["evaluate", "run", *flags]) == 0
    out, err = capsys.readouterr()
    assert ("4 test images" in out, err) == (True, "")
    (tmp_path / "data" / "0" / "0.png").unlink()
    with pytest.warns(UserWarning, match="has changed since the run was trained on it"):
        cli.call(cli.choose, "ultimus", ["evaluate", "run", *flags])
    assert "4 test images" in capsys.readouterr().out
    shutil.copytree("data", "moved")
    cli.call(cli.choose, "ultimus", ["evaluate", "run", "--data", "folder:moved"])
    assert "19 images" in capsys.readouterr().out  # now nothing tells that it is the run's
