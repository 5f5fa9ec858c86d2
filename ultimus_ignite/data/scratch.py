"""Files that a crash cannot leave half written: built in a scratch folder, then renamed."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

_PREFIX = ".scratch-"
_STALE_AFTER = 24 * 60 * 60  # seconds: longer than any running download or decoding


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new empty folder in ``parent``, readable by its owner only and removed at the end.

    It is on the file system of ``parent``, so a finished file moves out by an atomic rename. A
    process that is killed leaves its folder behind; the first call after a day removes it.

    Raises:
        OSError: ``parent``, which is made if missing, cannot be made or written.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for leftover in parent.glob(f"{_PREFIX}*"):
        with suppress(FileNotFoundError):  # another process removed it first
            if time.time() - leftover.stat().st_mtime > _STALE_AFTER:
                shutil.rmtree(leftover, ignore_errors=True)
    with TemporaryDirectory(prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
