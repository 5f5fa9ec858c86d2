"""The model card of finished runs, with names that YAML, Markdown or HTML might take for more."""

import html
import json
import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest

from ultimus_ignite import Recipe, train
from ultimus_ignite.results.model_card import model_card, write_card
from ultimus_ignite.run_directory import RunDirectory

HOSTILE = ["<img src=x onerror=alert(1)>", "a: [b", "- '\"", "---", "x | y", "__init__", "`c`"]
HOSTILE += ["&amp;", "# no", "\\n", "Kaf\u00ebe \U0001f600", "two\nlines", "{}", "null", "~", "_"]
NAMES = st.sampled_from(HOSTILE) | st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    train(Recipe(data="digits", epochs=2, device="cpu"), out=folder)
    return folder


def changed(folder, new, *, data=None, classes=None, status=None, **recipe):
    """A copy of what the card is made of, with other names and another result."""
    new.mkdir()
    description = json.loads((folder / "recipe.json").read_text())
    if data is not None:
        description["data"]["name"] = data
    if classes is not None:
        description["data"]["class_names"] = classes
    description["recipe"] |= recipe
    (new / "recipe.json").write_text(json.dumps(description))
    facts = json.loads((folder / "status.json").read_text())
    (new / "status.json").write_text(json.dumps(status or facts))
    return RunDirectory(new)


def front_matter(card):
    """The lines between the first two marks, as a hub cuts them out."""
    return re.match(r"---\n(.*?)\n---\n", card, flags=re.DOTALL)[1]


def test_a_finished_run_has_the_card(folder):
    card = (folder / "README.md").read_text()
    accuracy = json.loads((folder / "status.json").read_text())["test_accuracy"]
    assert f"value: {accuracy!r}" in front_matter(card).splitlines()[-1]
    low, high = binomtest(round(accuracy * 360), 360).proportion_ci(method="wilson")
    interval = f"(95 % interval {low:.2%} to {high:.2%}, "
    assert f"Accuracy {accuracy:.2%} on 360 test images {interval}" in card
    assert card == model_card(RunDirectory(folder))


def test_its_code_runs_and_applies_the_model(folder, monkeypatch):
    (code,) = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    picture = folder / "picture.jpg"
    Image.new("RGB", (50, 40)).save(picture)
    *lines, last = code.splitlines()
    names = {}
    exec("\n".join(lines), names)
    (predicted,) = eval(last, names)
    picture.unlink()
    assert predicted in names["run"].classes


@pytest.mark.parametrize("edited", ["mine", "", None])
def test_a_card_is_never_written_over(folder, tmp_path, edited):
    directory = changed(folder, tmp_path / "run")
    if edited is None:
        directory.card.symlink_to("nowhere")
    else:
        directory.card.write_text(edited)
        os.utime(directory.card, (1, 1))
    write_card(directory)
    if edited is None:
        assert directory.card.is_symlink()
    else:
        assert (directory.card.read_text(), directory.card.stat().st_mtime) == (edited, 1)


def test_a_resume_of_the_finished_run_writes_what_is_missing(folder):
    recipe, card = Recipe(data="digits", epochs=2, device="cpu"), folder / "README.md"
    text = card.read_text()
    card.unlink()
    train(recipe, out=folder, resume=True)
    assert card.read_text() == text


def test_a_full_disk_only_warns(folder, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    directory = changed(folder, tmp_path / "run")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="no model card: No space left on device"):
        write_card(directory)
    assert sorted(path.name for path in directory.path.iterdir()) == ["recipe.json", "status.json"]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_names_stay_names(folder, tmp_path_factory, data):
    classes = data.draw(st.lists(NAMES, min_size=2, max_size=5))
    prefix = data.draw(st.sampled_from(["", "folder:/secret/"]))
    name = data.draw(NAMES).replace("\0", "0")  # which no path has
    directory = changed(
        folder, tmp_path_factory.mktemp("card") / "run", data=prefix + name, classes=classes
    )
    card = model_card(directory)
    assert "/secret" not in card
    metadata, text = front_matter(card), card.split("\n---\n", 1)[1]
    scalars = re.findall(r': (".*")$', metadata, flags=re.MULTILINE)
    assert all(isinstance(json.loads(scalar), str) for scalar in scalars)
    assert len(scalars) == len(re.findall('"$', metadata, flags=re.MULTILINE)) == 3
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", text, flags=re.MULTILINE)
    assert len(rows) == len(classes)
    for (_, shown), given_name in zip(rows, classes, strict=True):
        assert not re.search(r"[<>|`*\[\]\\]", shown)
        if given_name.isprintable():
            assert html.unescape(shown) == given_name


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_reader_of_yaml_gets_the_metadata(folder, tmp_path_factory, data):
    yaml = pytest.importorskip("yaml")
    name = data.draw(NAMES)
    directory = changed(folder, tmp_path_factory.mktemp("card") / "run", data=name)
    metadata = yaml.safe_load(front_matter(model_card(directory)))
    (entry,) = metadata["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "run"
    if name.isprintable() and not name.startswith("folder:"):
        assert result["dataset"] == {"name": name, "type": name, "split": "test"}
    status = json.loads((folder / "status.json").read_text())
    assert result["metrics"] == [{"type": "accuracy", "value": status["test_accuracy"]}]
    assert metadata["library_name"] == "ultimus-ignite"


def test_what_validation_measured_is_called_so(folder, tmp_path):
    status = {"status": "finished", "val_accuracy": 0.25}
    card = model_card(changed(folder, tmp_path / "run", status=status))
    assert "Accuracy 25.00% on validation images." in card  # recipe.json does not count them
    assert "split: validation" in front_matter(card)


def test_it_says_what_was_held_out_and_what_a_network_of_ones_own_needs(folder, tmp_path):
    plain = model_card(changed(folder, tmp_path / "plain"))
    own = model_card(changed(folder, tmp_path / "own", model="nets:Small", val_fraction=0.1))
    for words in ("of which 10.0% judged the epochs", '`load_run(".", model=network)`'):
        assert words in own
        assert words not in plain


def test_a_folder_of_images_is_named_without_its_place(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    for number, place in enumerate(("folder:/secret/birds/", "folder:../birds", "birds")):
        metadata = front_matter(model_card(changed(folder, tmp_path / str(number), data=place)))
        kind = "imagefolder" if ":" in place else "birds"
        assert [f'type: "{kind}"', 'name: "birds"', "split: test"] == [
            line.strip() for line in metadata.splitlines()[-6:-3]
        ]


def test_a_data_set_of_the_hub_is_named_as_there(folder, tmp_path):
    metadata = front_matter(model_card(changed(folder, tmp_path / "run", data="cifar10")))
    assert "datasets: [uoft-cs/cifar10]" in metadata.splitlines()
    assert 'type: "uoft-cs/cifar10"' in metadata
