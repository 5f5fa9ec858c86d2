"""Writing that a crash cannot leave half done: build in a scratch folder, then rename."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

_PREFIX = ".scratch-"
_STALE_AFTER = 24 * 60 * 60  # seconds: longer than any download or decode that is still alive


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new private folder inside ``parent``, removed at the end.

    It shares the file system of ``parent``, so what was built in it moves out by an atomic rename.
    A process that is killed cannot remove its folder: the next call after a day does.

    Args:
        parent: made with its parents where missing.

    Yields:
        The empty folder, readable by its owner only.

    Raises:
        OSError: ``parent`` cannot be made or written.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for leftover in parent.glob(f"{_PREFIX}*"):
        with suppress(FileNotFoundError):  # another process swept it first
            if time.time() - leftover.stat().st_mtime > _STALE_AFTER:
                shutil.rmtree(leftover, ignore_errors=True)
    with TemporaryDirectory(prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
