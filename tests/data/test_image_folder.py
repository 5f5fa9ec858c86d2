"""`folder:DIR`: what is decoded, what is cached, and what is refused."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ultimus_ignite.data import decoder_processes
from ultimus_ignite.data.image_data import DataError, ImageData
from ultimus_ignite.data.image_folder import load_folder
from ultimus_ignite.data.pixels import read_pixels

NAMES = ["a.png", "b.jpg", "c.bmp", "d.gif", "e é.webp"]
PLACES = [f"{split}/{name}" for split in ("train", "test") for name in ("cat", "dog")]


def random_image(mode: str, width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, five kinds of image in each."""
    root = tmp_path / "images"
    for seed, place in enumerate(PLACES):
        (root / place).mkdir(parents=True)
        random_image("RGB", 32, 32, seed).save(root / place / "a.png")
        random_image("RGB", 32, 32, seed).save(root / place / "b.jpg")
        random_image("L", 28, 28, seed).save(root / place / "c.bmp")
        random_image("P", 32, 40, seed).save(root / place / "d.gif")
        random_image("RGBA", 200, 100, seed).save(root / place / "e é.webp", lossless=True)
    return root


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def cache_of(data_dir: Path) -> Path:
    (cache,) = (data_dir / "cache").iterdir()
    return cache


def assert_same(one: ImageData, other: ImageData) -> None:
    assert (one.name, one.classes, one.mean, one.std) == (
        other.name,
        other.classes,
        other.mean,
        other.std,
    )
    assert one.sha256 == other.sha256
    assert torch.equal(one.train_images, other.train_images)
    assert torch.equal(one.train_labels, other.train_labels)
    assert torch.equal(one.test_images, other.test_images)
    assert torch.equal(one.test_labels, other.test_labels)


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_decoding(path: str, size: int) -> None:
        raise AssertionError(f"{path} was decoded")

    monkeypatch.setattr(decoder_processes, "read_pixels", no_decoding)


# What is decoded


def pillow(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    if rgb.size != (32, 32):
        rgb = rgb.resize((32, 32), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def test_every_image_is_what_pillow_reads(folder: Path, data_dir: Path) -> None:
    data = load_folder(folder, data_dir)
    assert data.name == f"folder:{folder}"
    assert data.classes == ("cat", "dog")
    for split, images, labels in (
        ("train", data.train_images, data.train_labels),
        ("test", data.test_images, data.test_labels),
    ):
        paths = sorted((folder / split).glob("*/*"))
        assert len(images) == len(paths) == 10
        for path, image, label in zip(paths, images, labels, strict=True):
            assert data.classes[label] == path.parent.name
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pillow(path))


def test_hidden_files_are_passed_over(folder: Path, data_dir: Path) -> None:
    before = load_folder(folder, data_dir)
    for hidden in (".DS_Store", "train/.DS_Store", "train/cat/.DS_Store"):
        (folder / hidden).write_bytes(b"not an image")
    (folder / "train" / ".git").mkdir()
    assert_same(load_folder(folder, data_dir), before)


def test_links_are_followed(folder: Path, data_dir: Path) -> None:
    before = load_folder(folder, data_dir)
    (folder / "train" / "cat").rename(folder / "elsewhere")
    (folder / "train" / "cat").symlink_to(folder / "elsewhere")
    (folder / "elsewhere" / "a.png").rename(folder / "picture")
    (folder / "elsewhere" / "a.png").symlink_to(folder / "picture")
    assert_same(load_folder(folder, data_dir), before)


# What is cached


def test_the_second_start_maps_what_the_first_decoded(
    folder: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_folder(folder, data_dir)
    forbid_decoding(monkeypatch)
    second = load_folder(folder, data_dir)
    assert_same(first, second)
    assert str(cache_of(data_dir)) in Path("/proc/self/maps").read_text()

    batch = second.train_images[torch.tensor([3, 1])]
    assert torch.equal(batch[1], second.train_images[1])
    second.train_images.zero_()  # a private copy of the pages: the cache must not hear of it
    assert_same(first, load_folder(folder, data_dir))


def add(folder: Path) -> None:
    shutil.copy(folder / "train/cat/a.png", folder / "train/cat/f.png")


def add_class(folder: Path) -> None:
    for split in ("train", "test"):
        shutil.copytree(folder / split / "dog", folder / split / "wolf")


def remove(folder: Path) -> None:
    (folder / "test/dog/b.jpg").unlink()


def rename(folder: Path) -> None:
    (folder / "train/cat/a.png").rename(folder / "train/cat/z.png")


def move_to_other_class(folder: Path) -> None:
    (folder / "train/dog/a.png").rename(folder / "train/cat/z.png")


def change(folder: Path) -> None:
    random_image("RGB", 32, 32, seed=99).save(folder / "train/dog/a.png")


def swap_same_size_and_age(folder: Path) -> None:
    one, other = folder / "train/cat/c.bmp", folder / "train/dog/c.bmp"
    assert one.stat().st_size == other.stat().st_size
    for path in (one, other):
        os.utime(path, ns=(0, 0))
    load_folder(folder, folder.parent / "data")
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)


@pytest.mark.parametrize(
    "edit", [add, add_class, remove, rename, move_to_other_class, change, swap_same_size_and_age]
)
def test_an_edited_folder_is_decoded_again(
    folder: Path, data_dir: Path, tmp_path: Path, edit: Callable[[Path], None]
) -> None:
    before = load_folder(folder, data_dir)
    edit(folder)
    after = load_folder(folder, data_dir)
    assert after.sha256 != before.sha256
    assert_same(after, load_folder(folder, tmp_path / "new"))
    assert cache_of(data_dir).is_file()  # one file: the old one was replaced


@pytest.mark.parametrize(
    ("edit", "decoded"),
    [
        (add, ["train/cat/f.png"]),
        (add_class, [f"{s}/wolf/{n}" for s in ("train", "test") for n in NAMES]),
        (remove, []),
        (rename, ["train/cat/z.png"]),
        (move_to_other_class, ["train/cat/z.png"]),
        (change, ["train/dog/a.png"]),
    ],
)
def test_only_what_changed_is_decoded_again(
    folder: Path,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    edit: Callable[[Path], None],
    decoded: list[str],
) -> None:
    load_folder(folder, data_dir)
    edit(folder)
    read: list[str] = []

    def record(path: str, size: int) -> NDArray[np.uint8]:
        read.append(str(Path(path).relative_to(folder)))
        return read_pixels(path, size)

    monkeypatch.setattr(decoder_processes, "read_pixels", record)
    load_folder(folder, data_dir)
    assert sorted(read) == sorted(decoded)


def test_two_folders_do_not_share_a_cache(folder: Path, data_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    change(other)
    one, two = load_folder(folder, data_dir), load_folder(other, data_dir)
    assert one.sha256 != two.sha256
    assert_same(load_folder(folder, data_dir), one)
    assert_same(load_folder(other, data_dir), two)


def test_a_cache_cut_short_anywhere_is_rebuilt(folder: Path, data_dir: Path) -> None:
    first = load_folder(folder, data_dir)
    cache = cache_of(data_dir)
    whole = cache.read_bytes()
    for length in [0, 1, 7, 8, 9, *range(100, len(whole), 4999), len(whole) - 1]:
        cache.write_bytes(whole[:length])
        assert_same(load_folder(folder, data_dir), first)
        assert cache.stat().st_size == len(whole)


def test_a_flipped_header_byte_never_shows(folder: Path, data_dir: Path) -> None:
    for path in folder.glob("*/*/[!a]*"):  # one image a class is quickly decoded
        path.unlink()
    first = load_folder(folder, data_dir)
    cache = cache_of(data_dir)
    whole = cache.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for position in range(header):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        cache.write_bytes(damaged)
        assert_same(load_folder(folder, data_dir), first)


@pytest.mark.parametrize("content", [b"", b"junk" * 100, (2).to_bytes(8, "little") + b"{}"])
def test_a_foreign_file_in_place_of_the_cache_is_replaced(
    folder: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    first = load_folder(folder, data_dir)
    cache_of(data_dir).write_bytes(content)
    assert_same(load_folder(folder, data_dir), first)
    forbid_decoding(monkeypatch)
    assert_same(load_folder(folder, data_dir), first)


@pytest.mark.parametrize("blocked", ["data", "data/cache"])
def test_where_no_cache_can_be_written_the_images_still_load(
    folder: Path, data_dir: Path, tmp_path: Path, blocked: str
) -> None:
    first = load_folder(folder, tmp_path / "elsewhere")
    (tmp_path / blocked).parent.mkdir(exist_ok=True)
    (tmp_path / blocked).write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match=r"safetensors: cannot be written \(.*decoded again"):
        assert_same(load_folder(folder, data_dir), first)


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.mkdir"])
def test_a_failed_write_keeps_the_old_cache_and_leaves_nothing(
    folder: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    load_folder(folder, data_dir)
    before = cache_of(data_dir).read_bytes()
    change(folder)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(call, full)
        with pytest.warns(UserWarning, match="No space left"):
            changed = load_folder(folder, data_dir)
    assert cache_of(data_dir).read_bytes() == before
    assert_same(load_folder(folder, data_dir), changed)


@pytest.mark.parametrize("umask", [0o077, 0o022])
def test_the_umask_is_honoured(folder: Path, data_dir: Path, umask: int) -> None:
    previous = os.umask(umask)
    try:
        load_folder(folder, data_dir)
    finally:
        os.umask(previous)
    assert cache_of(data_dir).stat().st_mode & 0o777 == 0o666 & ~umask


def run_script(script: str, *arguments: Path, **environment: str) -> None:
    """A fresh interpreter: forking and killing are not for the one that runs the tests."""
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


KILLED_WHILE_WRITING = """
import os, sys, tempfile
from pathlib import Path
from ultimus_ignite.data.image_folder import load_folder

folder, data_dir = map(Path, sys.argv[1:])
places = [(tempfile, "mkdtemp"), (Path, "open"), (os, "fsync"), (Path, "replace")]
for module, name in places:
    real = getattr(module, name)
    for kill_after in (False, True):
        if (child := os.fork()) == 0:
            def dies(*args, **kwargs):
                if kill_after:
                    real(*args, **kwargs)
                os._exit(9)
            setattr(module, name, dies)
            load_folder(folder, data_dir)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, name
        if name == "replace" and kill_after:
            continue
        assert not list(data_dir.glob("cache/*.safetensors")), name
"""


def test_a_process_killed_while_it_writes_leaves_a_valid_cache_or_none(
    folder: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_script(KILLED_WHILE_WRITING, folder, data_dir)
    expected = load_folder(folder, tmp_path / "new")
    leftovers = list((data_dir / "cache").glob(".scratch-*"))
    assert leftovers
    with monkeypatch.context() as patch:  # the last child died after the rename
        forbid_decoding(patch)
        assert_same(load_folder(folder, data_dir), expected)

    for leftover in leftovers:
        os.utime(leftover, (time.time() - 2 * 24 * 3600,) * 2)
    change(folder)
    load_folder(folder, data_dir)
    assert cache_of(data_dir).is_file()  # and the leftovers are gone


TWO_AT_ONCE = """
import os, sys
from pathlib import Path
from ultimus_ignite.data.image_folder import load_folder

folder, data_dir = map(Path, sys.argv[1:])
reader, writer = os.pipe()
children = []
for _ in range(4):
    if (child := os.fork()) == 0:
        os.close(writer)
        os.read(reader, 1)  # returns when the parent closes its end: all start at once
        for _ in range(20):
            (folder / "train/cat/a.png").touch()
            load_folder(folder, data_dir)
        os._exit(0)
    children.append(child)
os.close(writer)
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"""


def test_processes_that_build_at_once_end_with_one_valid_cache(
    folder: Path, data_dir: Path, tmp_path: Path
) -> None:
    run_script(TWO_AT_ONCE, folder, data_dir)
    expected = load_folder(folder, tmp_path / "new")
    assert_same(load_folder(folder, data_dir), expected)
    assert cache_of(data_dir).is_file()


PLAIN_START = """
import sys
from pathlib import Path
from ultimus_ignite.data.sources import load

folder, data_dir = sys.argv[1:]
first, second = load(f"folder:{folder}", data_dir), load(f"folder:{folder}", data_dir)
assert first.sha256 == second.sha256
assert first.name == second.name == f"folder:{folder}"
assert first.classes == ("cat", "größer 猫"), first.classes
slow = {"torchvision", "sklearn"} & set(sys.modules)
assert not slow, f"a folder starts without {slow}"
"""


def test_any_path_works_in_the_c_locale_and_without_slow_imports(
    folder: Path, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        (folder / split / "dog").rename(folder / split / "größer 猫")
    strange = folder.rename(tmp_path / "Bilder für ß 猫 & 'q'")
    run_script(PLAIN_START, strange, tmp_path / "Daten ü", LC_ALL="C")


# What is refused


def missing(root: Path) -> Path:
    shutil.rmtree(root)
    return root / "train"


def without_test(root: Path) -> Path:
    shutil.rmtree(root / "test")
    return root / "test"


def without_classes(root: Path) -> Path:
    shutil.rmtree(root / "test")
    (root / "test").mkdir()
    return root / "test"


def file_for_split(root: Path) -> Path:
    shutil.rmtree(root / "train")
    (root / "train").write_text("")
    return root / "train"


def file_for_class(root: Path) -> Path:
    (root / "train/labels.csv").write_text("")
    return root / "train/labels.csv"


def empty_class(root: Path) -> Path:
    for path in (root / "train/dog").iterdir():
        path.unlink()
    (root / "train/dog/.keep").write_text("")
    return root / "train/dog"


def folder_for_image(root: Path) -> Path:
    (root / "test/cat/more.png").mkdir()
    return root / "test/cat/more.png"


def broken_link(root: Path) -> Path:
    (root / "test/cat/f.png").symlink_to(root / "nowhere")
    return root / "test/cat/f.png"


def circular_link(root: Path) -> Path:
    (root / "test/cat/f.png").symlink_to(root / "test/cat/f.png")
    return root / "test/cat/f.png"


def named_pipe(root: Path) -> Path:
    os.mkfifo(root / "test/cat/f.png")
    return root / "test/cat/f.png"


def other_classes(root: Path) -> Path:
    (root / "test/dog").rename(root / "test/wolf")
    return root


def text_for_image(root: Path) -> Path:
    (root / "test/cat/f.png").write_text("hello")
    return root / "test/cat/f.png"


def cut_image(root: Path) -> Path:
    path = root / "train/dog/a.png"
    path.write_bytes(path.read_bytes()[:200])
    return path


def empty_image(root: Path) -> Path:
    (root / "train/dog/a.png").write_bytes(b"")
    return root / "train/dog/a.png"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (missing, "No such file or directory; expected DIR/train/<class>/"),
        (without_test, "No such file or directory; expected DIR/train/<class>/"),
        (without_classes, "expected a folder for each class, got an empty folder"),
        (file_for_split, "Not a directory; expected DIR/train/<class>/"),
        (file_for_class, "expected a class folder, got a file"),
        (empty_class, "expected images, got an empty folder"),
        (folder_for_image, "expected an image file, got a folder"),
        (broken_link, "expected an image file, got a broken link"),
        (circular_link, "Too many levels of symbolic links; expected DIR"),
        (named_pipe, "expected an image file, got a broken link or special file"),
        (other_classes, "train and test must have the same classes; only one has dog, wolf"),
        (text_for_image, "not a readable image"),
        (cut_image, "not a readable image"),
        (empty_image, "not a readable image"),
    ],
)
def test_a_malformed_folder_is_refused_by_name(
    folder: Path, data_dir: Path, spoil: Callable[[Path], Path], reason: str
) -> None:
    culprit = spoil(folder)
    with pytest.raises(DataError, match=f"^{re.escape(str(culprit))}: .*{re.escape(reason)}"):
        load_folder(folder, data_dir)
    assert not data_dir.exists()


@pytest.mark.parametrize("path", ["/a\0b", "/\ud800", "/" + "a" * 5000])
def test_what_cannot_be_a_path_is_refused(data_dir: Path, path: str) -> None:
    with pytest.raises(DataError, match=r"not a path|File name too long"):
        load_folder(Path(path), data_dir)
