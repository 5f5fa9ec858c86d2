"""A decoding that is broken off is continued, by one process at a time, and leaves nothing."""

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
from data.pictures import blocks
from PIL import Image

from ultimus_ignite.data import decoder_processes
from ultimus_ignite.data.image_data import DataError, ImageData
from ultimus_ignite.data.image_folder import load_folder
from ultimus_ignite.data.pixels import read_pixels

COUNT = 5  # images of a class


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4 * COUNT):
        place = ("train/cat", "train/dog", "test/cat", "test/dog")[number // COUNT]
        (tmp_path / "images" / place).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(blocks(number))
        picture.save(tmp_path / "images" / place / f"{number:02}.png")
    return tmp_path / "images"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all files that are decoded; the one called ``stop`` raises Ctrl-C."""
    names: list[str] = []

    def record(path: str, size: int) -> Any:
        if path.endswith("stop.png"):
            raise KeyboardInterrupt
        names.append(Path(path).name)
        return read_pixels(path, size)

    monkeypatch.setattr(decoder_processes, "read_pixels", record)
    return names


@pytest.fixture
def interrupted(folder: Path, tmp_path: Path, decoded: list[str]) -> Path:
    """The folder of a cache whose decoding was broken off after three classes."""
    (folder / "test/dog/00stop.png").symlink_to(folder / "test/cat/10.png")
    with pytest.raises(KeyboardInterrupt):
        load_folder(folder, tmp_path / "data")
    assert len(decoded) == 3 * COUNT
    decoded.clear()
    (folder / "test/dog/00stop.png").unlink()
    return tmp_path / "data"


def interrupt(path: str, size: int) -> None:
    raise KeyboardInterrupt


def whole(folder: Path) -> ImageData:
    return load_folder(folder, folder.parent / "another")


def left_in(data_dir: Path) -> list[str]:
    return sorted(path.suffix for path in data_dir.glob("cache/*/*"))


def test_what_was_decoded_before_ctrl_c_is_not_decoded_again(
    folder: Path, interrupted: Path, decoded: list[str]
) -> None:
    data = load_folder(folder, interrupted)
    assert decoded == [f"{number:02}.png" for number in range(3 * COUNT, 4 * COUNT)]
    assert data.sha256 == whole(folder).sha256
    assert left_in(interrupted) == ["", ".json", ".marks", ".pixels"]


def test_images_that_change_in_between_are_decoded_again_and_nothing_piles_up(
    folder: Path, interrupted: Path, decoded: list[str]
) -> None:
    for number in range(3):
        (folder / f"train/cat/new{number}.png").symlink_to(folder / "test/cat/10.png")
        os.utime(folder / "train/dog/05.png", ns=(number, number))
        (folder / "test/dog/00stop.png").symlink_to(folder / "test/cat/10.png")
        with pytest.raises(KeyboardInterrupt):
            load_folder(folder, interrupted)
        (folder / "test/dog/00stop.png").unlink()
    decoded.clear()
    (folder / "train/cat/00.png").unlink()
    data = load_folder(folder, interrupted)
    assert decoded == [f"{number:02}.png" for number in range(3 * COUNT, 4 * COUNT)]
    assert data.sha256 == whole(folder).sha256
    assert left_in(interrupted) == ["", ".json", ".marks", ".pixels"]


@pytest.mark.parametrize("mend", ["remove", "skip"])
def test_what_was_decoded_before_a_refusal_is_not_decoded_again(
    folder: Path, tmp_path: Path, decoded: list[str], mend: str
) -> None:
    bad = folder / "train/cat/00bad.png"
    bad.touch()
    with pytest.raises(DataError, match="00bad.png: not a readable image"):
        load_folder(folder, tmp_path / "data")
    decoded.clear()
    if mend == "remove":
        bad.unlink()
    data = load_folder(folder, tmp_path / "data", skip_unreadable=mend == "skip")
    assert decoded == ["00bad.png"] * (mend == "skip")
    bad.unlink(missing_ok=True)
    assert data.sha256 == whole(folder).sha256
    assert left_in(tmp_path / "data") == ["", ".json", ".marks", ".pixels"]


def test_a_cache_that_lost_images_is_not_taken_for_whole_while_it_is_mended(
    folder: Path, tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_folder(folder, tmp_path / "data")
    (pixels,) = tmp_path.glob("data/cache/*/*.pixels")
    os.truncate(pixels, pixels.stat().st_size // 2)
    with monkeypatch.context() as patch:
        patch.setattr(decoder_processes, "read_pixels", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load_folder(folder, tmp_path / "data")
    decoded.clear()
    assert load_folder(folder, tmp_path / "data").sha256 == data.sha256
    assert len(decoded) == 2 * COUNT


def test_while_another_process_decodes_the_images_are_decoded_for_this_one_alone(
    folder: Path, interrupted: Path, decoded: list[str]
) -> None:
    (cache,) = interrupted.glob("cache/*")
    before = {path: path.read_bytes() for path in cache.iterdir()}
    with (cache / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        data = load_folder(folder, interrupted)
        assert len(decoded) == COUNT  # what the other has decoded is known
        assert {path: path.read_bytes() for path in cache.iterdir()} == before
    assert data.sha256 == whole(folder).sha256
    assert load_folder(folder, interrupted).sha256 == data.sha256
