"""What lies in a folder: images, what is passed over, and what is refused."""

import os
import random
import socket
from pathlib import Path

import pytest

from ultimus_ignite.data.image_data import DataError
from ultimus_ignite.data.walk import Walk, describe_passed_over

LITTER = [
    "Thumbs.db", "ehthumbs.db", ".DS_Store", "desktop.ini", "Desktop.ini", "Icon\r", "._a.jpg",
    "labels.csv", "README.md", "annotations.JSON", "list.txt", "features.npy", "images.zip",
]  # fmt: skip
LITTER_FOLDERS = [
    "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", ".git",
]  # fmt: skip


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("seed", range(10))
def test_images_at_any_depth_are_found_and_litter_is_counted(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    folders = [tmp_path]
    for name in ("a", "b.csv", "größer", "z z"):
        folders.append(draw.choice(folders) / name)
        folders[-1].mkdir()
    images, litter = [], []
    for folder in folders:
        images += [folder / name for name in draw.sample(["1.png", "2.JPG", "3", "4.x"], k=2)]
        litter += [folder / name for name in draw.sample(LITTER, k=4)]
        for name in draw.sample(LITTER_FOLDERS, k=2):
            touch(folder / name, "inside.jpg")  # not counted: the folder is
            litter.append(folder / name)
    touch(Path("/"), *map(str, images), *(str(path) for path in litter if not path.is_dir()))

    walk = Walk()
    assert walk.list_images(str(tmp_path)) == sorted(map(str, images))
    assert sorted(walk.passed_over) == sorted(map(str, litter))


def test_the_line_counts_everything_and_names_five() -> None:
    paths = [f"x/{name}/{number}.csv" for name in "ab" for number in range(4)]
    line = describe_passed_over(paths)
    assert line.startswith("passed over: 8 ")
    assert "(0.csv, 1.csv, 2.csv, 3.csv)" in line
    many = describe_passed_over([f"{number}.csv" for number in range(9)])
    assert "9 files" in many
    assert "(0.csv, 1.csv, 2.csv, 3.csv, 4.csv, ...)" in many


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.png", "train/cat/deep/2.png", "elsewhere/3.png")
    cat = tmp_path / "train/cat"
    (cat / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(cat)
    (cat / "deep/up").symlink_to(cat / "deep")
    (cat / "to_train").symlink_to(tmp_path / "train")
    (cat / "twice").symlink_to(cat / "deep")
    walk = Walk()
    found = walk.list_images(str(cat), above=[str(tmp_path / "train")])
    names = [Path(path).name for path in found]
    assert names == ["1.png", "2.png", "3.png"]
    assert len(walk.passed_over) == 4


@pytest.mark.parametrize("kind", ["a broken link", "a pipe or other special file"])
@pytest.mark.parametrize("place", ["", "deep/deeper/"])
def test_what_is_no_file_is_refused_by_name(tmp_path: Path, kind: str, place: str) -> None:
    touch(tmp_path, f"{place}1.png")
    culprit = tmp_path / place / "2.png"
    if kind == "a broken link":
        culprit.symlink_to("nowhere")
    else:
        os.mkfifo(culprit)
    with pytest.raises(DataError, match=f"^{culprit}: expected an image, got {kind}: remove it$"):
        Walk().list_images(str(tmp_path))


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.png")
        with pytest.raises(
            DataError, match="s.png: expected an image, got a pipe or other special"
        ):
            Walk().list_images(".")
