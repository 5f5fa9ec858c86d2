"""Which folders hold the splits and the classes."""

import os
import random
from pathlib import Path

import pytest

from ultimus_ignite.data.image_data import DataError
from ultimus_ignite.data.layout import find_layout

Found = dict[str, dict[str, list[str]]]


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            (root / name).touch()
    return root


def find(root: Path) -> Found:
    """Splits and classes, with the images' paths below the root."""
    splits = find_layout(root).splits
    return {
        split: {name: [os.path.relpath(p, root) for p in paths] for name, paths in classes.items()}
        for split, classes in splits.items()
    }


def classes_of(found: Found) -> dict[str, list[str]]:
    return {split: sorted(classes) for split, classes in found.items()}


CAT_AND_DOG = ["cat", "dog"]


@pytest.mark.parametrize("seed", range(12))
def test_splits_are_known_by_their_names_in_any_letter_case(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    names = {"train": ["train", "training"], "test": ["test", "testing"]}
    names["val"] = ["val", "valid", "validation"]
    splits = ["train", *draw.choice([["val"], ["test"], ["val", "test"]])]
    paths, expected = [], {}
    for split in splits:
        name = "".join(draw.choice([c.upper(), c]) for c in draw.choice(names[split]))
        name += f"/{name}" * draw.choice([0, 0, 1, 2])  # train/train/<class>
        expected[split] = {c: [f"{name}/{c}/1.png"] for c in CAT_AND_DOG}
        paths += [f"{name}/{c}/1.png" for c in CAT_AND_DOG]
    prefix = draw.choice(["", "archive/", "a (1)/b/"])
    root = make(tmp_path, *(prefix + path for path in paths))
    make(root, "__MACOSX/x.jpg", "README.txt")
    found = find(root)
    assert list(found) == [split for split in ("train", "val", "test") if split in splits]
    assert found == {
        split: {c: [prefix + path for path in paths] for c, paths in classes.items()}
        for split, classes in expected.items()
    }
    layout = find_layout(root)
    assert (layout.held_out, len(layout.passed_over)) == ("", 2)


@pytest.mark.parametrize(
    ("paths", "train"),
    [
        (["bus/1", "bus/2", "train/1", "train/2"], ["bus", "train"]),  # vehicles
        (["valid/1", "valid/2", "invalid/1", "invalid/2"], ["invalid", "valid"]),
        (["cat/2020/1", "cat/2021/2", "dog/1", "dog/2"], CAT_AND_DOG),
        (["train/cat/2020/1", "train/dog/1", "test/cat/1"], CAT_AND_DOG),
        (["train/train/1", "train/bus/1", "test/bus/1"], ["bus", "train"]),
        (["train/test/1", "train/val/1", "test/test/1"], ["test", "val"]),
        (["train/train/1", "test/train/1"], ["train"]),  # one class, called so
        (["train/cat/2020/1", "test/cat/2020/1"], ["cat"]),  # one class is no split
        (["flowers/rose/1", "flowers/rose/2"], ["flowers"]),
        (["x/train/cat/1", "x/val/cat/1", "__MACOSX/train/dog/1"], ["cat"]),
    ],
)
def test_a_class_is_not_taken_for_a_split(
    tmp_path: Path, paths: list[str], train: list[str]
) -> None:
    assert classes_of(find(make(tmp_path, *paths)))["train"] == train


def test_beside_the_splits_anything_else_is_passed_over_by_name(tmp_path: Path) -> None:
    make(tmp_path, "train/cat/1", "test/cat/1", "unlabelled/1.jpg", "preview.png", "LICENSE")
    names = [Path(path).name for path in find_layout(tmp_path).passed_over]
    assert sorted(names) == ["LICENSE", "preview.png", "unlabelled"]


def test_a_class_of_val_or_test_without_images_is_as_if_absent(tmp_path: Path) -> None:
    make(tmp_path, "train/cat/1", "train/dog/1", "test/cat/1", "test/dog/Thumbs.db")
    assert classes_of(find(tmp_path)) == {"train": CAT_AND_DOG, "test": ["cat"]}


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "expected a folder for each class, got an empty folder; expected DIR/train/<class>"),
        (["train/cat/1", "Train/cat/1", "test/cat/1"], "Train and train both mean train: rename"),
        (["train/cat/1", "val/cat/1", "valid/cat/1"], "val and valid both mean val: rename"),
        (["train/cat/1", "tets/cat/1"], "no test or val folder, found tets, train; expected DIR"),
        (["test/cat/1", "val/cat/1"], "no train folder, found test, val; expected DIR/train"),
        (["cat/1", "dog/1", "test/cat/1"], "no train folder, found cat, dog, test; expected DIR"),
        (["tran/cat/1", "test/cat/1"], "no train folder, found test, tran; expected DIR/train"),
        (["train/cat/1", "train/a.jpg", "test/cat/1"], "/train/a.jpg: expected a class folder"),
        (["train/1", "test/1"], "/train/1: expected a class folder, got a file; expected DIR"),
        (["cat/1", "dog/1", "a.jpg"], "/a.jpg: expected a class folder, got a file"),
        (["train/cat/.keep", "test/cat/1"], "/train/cat: expected images, got an empty folder"),
        (["train/cat/1", "test/.keep"], "/test: expected a folder for each class, got an empty"),
        (["train/cat/1", "test/cat/.keep"], "/test: expected images, got empty folders only"),
        (["cat/1", "dog/1", "dog/2"], "/cat/1: one image only, and a test image has to be held"),
    ],
)
def test_anything_else_is_refused_with_what_was_expected_and_found(
    tmp_path: Path, paths: list[str], message: str
) -> None:
    make(tmp_path, *paths)
    with pytest.raises(DataError, match=f"^{tmp_path}.*{message}"):
        find_layout(tmp_path)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_chain_of_links_without_end_is_refused(tmp_path: Path, depth: int) -> None:
    folder = tmp_path.joinpath(*"ab"[:depth])
    folder.mkdir(parents=True)
    (folder / "loop").symlink_to(tmp_path)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        find_layout(tmp_path)


# A fifth is held out


def flat(root: Path, sizes: dict[str, int]) -> Path:
    return make(root, *(f"{name}/{i:03}.png" for name, size in sizes.items() for i in range(size)))


@pytest.mark.parametrize("seed", range(5))
def test_a_fifth_of_every_class_is_held_out(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    sizes = {name: draw.randint(2, 40) for name in "abcd"}
    found = find(flat(tmp_path / "one", sizes))
    assert "a stratified fifth" in find_layout(tmp_path / "one").held_out
    for name, size in sizes.items():
        train, test = found["train"][name], found["test"][name]
        assert abs(len(test) - size / 5) <= max(0.5, 1 - size / 5)  # at least one
        assert sorted(train + test) == [f"{name}/{i:03}.png" for i in range(size)]
        assert train == sorted(train)
        assert test == sorted(test)
    assert find(flat(tmp_path / "other", sizes)) == found  # wherever the folder lies


def test_of_a_training_set_alone_a_fifth_is_held_out(tmp_path: Path) -> None:
    flat(tmp_path / "train", {"a": 10, "b": 5})
    found = find(tmp_path)
    assert {name: len(paths) for name, paths in found["train"].items()} == {"a": 8, "b": 4}
    assert {name: len(paths) for name, paths in found["test"].items()} == {"a": 2, "b": 1}


def test_the_draw_does_not_follow_the_order_of_the_names(tmp_path: Path) -> None:
    found = find(flat(tmp_path, {name: 50 for name in "abcdefgh"}))
    held_out = [int(path[2:5]) for paths in found["test"].values() for path in paths]
    assert len(held_out) == 80
    assert 20 < sum(held_out) / 80 < 29  # 24.5, with a standard error of 1.6
    assert len(set(held_out)) > 30  # not the same numbers in every class


def test_an_added_image_moves_at_most_one_other(tmp_path: Path) -> None:
    before = find(flat(tmp_path, {"a": 40, "b": 40}))["test"]
    after = find(make(tmp_path, "a/new.png"))["test"]
    assert len(set(after["a"]) ^ set(before["a"])) <= 2
    assert after["b"] == before["b"]
