"""What lies in a folder: folders, files, and what is neither data nor a mistake.

Only names and kinds are read; no file is opened.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ultimus_ignite.data.image_data import DataError

LITTER = frozenset({
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "__macosx",
    "@eadir", "$recycle.bin", "recycler", "system volume information", "lost+found",
})  # fmt: skip
"""Names, in lower case, of files and folders that systems leave in any folder."""

SIDE_FILES = frozenset({
    "csv", "tsv", "txt", "json", "jsonl", "ndjson", "xml", "yaml", "yml", "toml", "ini", "cfg",
    "log", "lst", "md", "rst", "html", "htm", "pdf", "doc", "docx", "xls", "xlsx", "rtf", "bib",
    "npy", "npz", "mat", "pkl", "pickle", "h5", "hdf5", "parquet", "db", "sqlite", "pt", "pth",
    "py", "ipynb", "sh", "bat", "m", "zip", "gz", "tgz", "bz2", "xz", "tar", "7z", "rar",
    "md5", "sha1", "sha256", "url", "lnk", "bak", "tmp",
})  # fmt: skip
"""Endings, in lower case, of files that often lie beside images and are never images."""

_NAMED = 5  # of what is passed over


@dataclass
class Listing:
    """The folders and the files of one folder that are not passed over, sorted by name."""

    path: str
    folders: list[str] = field(default_factory=list)
    """Paths; links to folders are among them."""
    files: list[str] = field(default_factory=list)
    """Paths of what should be images."""


class Walk:
    """Lists folders and remembers what was passed over.

    Attributes:
        passed_over: paths of hidden entries, litter and side files.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     for name in ("1.jpg", "labels.csv", ".DS_Store"):
        ...         Path(folder, name).touch()
        ...     walk = Walk()
        ...     [Path(path).name for path in walk.list_images(folder)], len(walk.passed_over)
        (['1.jpg'], 2)
    """

    def __init__(self) -> None:
        self.passed_over: set[str] = set()

    def list_folder(self, path: str | Path) -> Listing:
        """Sort the entries of a folder by what they are.

        Raises:
            DataError: the path cannot be one, or an entry is a broken link or a special file.
            OSError: the folder is missing or cannot be read.
        """
        listing = Listing(os.fspath(path))
        try:
            with os.scandir(path) as scan:
                entries = list(scan)
        except ValueError as error:  # a null byte, or half of a surrogate pair
            raise DataError(f"{listing.path!r}: not a path: {error}") from error
        for entry in entries:
            name = entry.name.lower()
            if name.startswith(".") or name in LITTER:
                self.passed_over.add(entry.path)
            elif entry.is_file():
                if name.rpartition(".")[2] in SIDE_FILES:
                    self.passed_over.add(entry.path)
                else:
                    listing.files.append(entry.path)
            elif entry.is_dir():
                listing.folders.append(entry.path)
            else:  # a named pipe would block the decoder for ever
                kind = "a broken link" if entry.is_symlink() else "a pipe or other special file"
                raise DataError(f"{entry.path}: expected an image, got {kind}: remove it")
        listing.folders.sort()
        listing.files.sort()
        return listing

    def list_images(self, folder: str, above: Iterable[str] = ()) -> list[str]:
        """The paths of all images of a class, sorted, those in nested folders included.

        Links to folders are followed, but no folder is read twice.

        Args:
            folder: the folder of the class.
            above: the folders that it lies in; a link back to one of them is passed over.

        Raises:
            DataError: as `list_folder`.
            OSError: as `list_folder`.
        """
        images: list[str] = []
        seen = {_identity(path) for path in above}
        waiting = [folder]
        while waiting:
            path = waiting.pop()
            if _identity(path) in seen:
                self.passed_over.add(path)
                continue
            seen.add(_identity(path))
            listing = self.list_folder(path)
            images += listing.files
            waiting += reversed(listing.folders)  # the first by name is read first
        return sorted(images)


def describe_passed_over(paths: Sequence[str]) -> str:
    """One line that counts what is passed over and gives its first five names.

    Example:
        >>> describe_passed_over(["train/a/Thumbs.db", "train/b/Thumbs.db", "train/labels.csv"])
        'passed over: 3 files or folders that are not images (Thumbs.db, labels.csv)'
    """
    names = list(dict.fromkeys(path.rpartition(os.sep)[2] for path in paths))
    more = ", ..." if len(names) > _NAMED else ""
    one, several = "file or folder that is not an image", "files or folders that are not images"
    what = one if len(paths) == 1 else several
    return f"passed over: {len(paths)} {what} ({', '.join(names[:_NAMED])}{more})"


def _identity(path: str) -> tuple[int, int]:
    """What is the same for two paths of one folder."""
    state = os.stat(path)  # noqa: PTH116 - the paths are text
    return state.st_dev, state.st_ino
