"""Which folders of a data set hold its splits and its classes; no image is opened.

The layouts are ``DIR/train/<class>/*`` with ``DIR/test``, ``DIR/val`` or both, and
``DIR/<class>/*`` or ``DIR/train`` alone, of which a fifth is held out as the test set.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ultimus_ignite.data.image_data import DataError
from ultimus_ignite.data.walk import Listing, Walk

Classes = dict[str, list[str]]
"""The paths of each class's images, both sorted."""

SPLITS = ("train", "val", "test")
EXPECTED = (
    "expected DIR/train/<class>/* with DIR/test/<class>/* or DIR/val/<class>/* or both, "
    "or DIR/<class>/* alone"
)

_NAMES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
_NAMES |= {split: split for split in SPLITS}
_HELD_OUT = 5  # one of so many images
_SEED = 0  # fixed: runs of several seeds are compared on the same test images


@dataclass(frozen=True)
class Layout:
    """The splits of a folder of images."""

    splits: dict[str, Classes]
    """``train``, and ``val`` or ``test`` or both, in this order."""
    held_out: str
    """How the test set was drawn from the other images, in words; empty if it is a folder."""
    passed_over: list[str]
    """Paths of what is neither an image nor a mistake, sorted."""


def find_layout(root: Path) -> Layout:
    """Find the splits and classes of a folder.

    The names of the splits may be in any letter case, also ``training``, ``valid``, ``validation``
    and ``testing``. The splits may lie deeper, in a folder that is alone in its folder; a split may
    hold a single folder of the same name (``train/train/<class>``). Without a test or validation
    set, a fifth of the images is held out. Folders below a class belong to that class.

    Raises:
        DataError: the folder has none of the layouts, or holds a broken link or special file.
        OSError: a folder is missing or cannot be read.
    """
    walk = Walk()
    top = _find_top(walk, walk.list_folder(root))
    folders = _split_folders(walk, top)
    if folders:
        others = [path for path in top.folders if path not in folders.values()]
        _check_splits(top, folders, others)
        walk.passed_over.update(others, top.files)
        in_order = sorted(folders, key=SPLITS.index)
        splits = {split: _read_split(walk, folders[split], split, top.path) for split in in_order}
    else:
        splits = {"train": _read_classes(walk, top, "train", [])}
    how = ""
    if list(splits) == ["train"]:
        splits["train"], splits["test"] = _hold_out(splits["train"], top.path)
        how = f"the test images are a stratified fifth of all, drawn with seed {_SEED}"
    return Layout(splits, how, sorted(walk.passed_over))


def _find_top(walk: Walk, listing: Listing) -> Listing:
    """The folder that holds the splits, here or below folders that are alone; else this one."""
    top = listing
    while len(listing.folders) == 1 and not listing.files:
        listing = walk.list_folder(listing.folders[0])
        if _split_folders(walk, listing):
            top = listing
    return top


def _split_folders(walk: Walk, listing: Listing) -> dict[str, str]:
    """The path of each split's folder; none if all that could be one are classes.

    Without folders in it, and with other folders beside it, ``train`` is a class of vehicles and
    ``valid`` the opposite of ``invalid``.
    """
    claims = [(split, path) for path in listing.folders if (split := _split_of(path))]
    are_alone = len(claims) == len(listing.folders)
    if not are_alone and not any(walk.list_folder(path).folders for _, path in claims):
        return {}
    folders: dict[str, str] = {}
    for split, path in claims:
        if split in folders:
            both = " and ".join(Path(each).name for each in (folders[split], path))
            raise DataError(f"{listing.path}: {both} both mean {split}: rename or remove one")
        folders[split] = path
    return folders


def _split_of(path: str) -> str:
    """The split that a folder's name stands for; empty if none."""
    return _NAMES.get(Path(path).name.casefold(), "")


def _check_splits(top: Listing, folders: dict[str, str], others: list[str]) -> None:
    """Raise `DataError` without a training set, or if a folder may be a misspelt test set."""
    found = ", ".join(Path(path).name for path in top.folders[:5])
    if "train" not in folders:
        raise DataError(f"{top.path}: no train folder, found {found}; {EXPECTED}")
    if len(folders) == 1 and others:
        raise DataError(f"{top.path}: no test or val folder, found {found}; {EXPECTED}")


def _read_split(walk: Walk, folder: str, split: str, top: str) -> Classes:
    """The classes of a split, also if they lie in a folder of the same name in its folder."""
    listing = walk.list_folder(folder)
    while [split] == [_split_of(path) for path in listing.folders] and not listing.files:
        inner = walk.list_folder(listing.folders[0])
        if not inner.folders:  # a class that is called so
            break
        listing = inner
    return _read_classes(walk, listing, split, [top])


def _read_classes(walk: Walk, listing: Listing, split: str, above: list[str]) -> Classes:
    """The images of each class that has some; in the training set, every class must have one."""
    if listing.files:
        raise DataError(f"{listing.files[0]}: expected a class folder, got a file; {EXPECTED}")
    if not listing.folders:
        empty = "expected a folder for each class, got an empty folder"
        raise DataError(f"{listing.path}: {empty}; {EXPECTED}")
    classes: Classes = {}
    for folder in listing.folders:
        if images := walk.list_images(folder, [*above, listing.path]):
            classes[Path(folder).name] = images
        elif split == "train":
            empty = "expected images, got an empty folder"
            raise DataError(f"{folder}: {empty}: add some or remove it")
    if not classes:
        raise DataError(f"{listing.path}: expected images, got empty folders only")
    return classes


def _hold_out(classes: Classes, root: str) -> tuple[Classes, Classes]:
    """Divide each class into training images and a fifth, at least one, of test images.

    They are drawn by the hash of their paths below ``root``: the same on any machine, and images
    that are added later move few others.
    """
    train, test = {}, {}
    for name, paths in classes.items():
        if len(paths) == 1:
            alone = "one image only, and a test image has to be held out"
            raise DataError(f"{paths[0]}: {alone}: add images, or make train and test folders")
        count = max(1, round(len(paths) / _HELD_OUT))
        drawn = set(sorted(paths, key=lambda path: _draw(path, root))[:count])
        train[name] = [path for path in paths if path not in drawn]
        test[name] = [path for path in paths if path in drawn]
    return train, test


def _draw(path: str, root: str) -> bytes:
    """A number that depends on the seed and on the path below ``root``."""
    name = os.fsencode(path.removeprefix(root).lstrip(os.sep))
    return hashlib.sha256(b"%d %b" % (_SEED, name)).digest()
