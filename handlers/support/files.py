"""Files that a crash cannot leave half written."""

import os
from pathlib import Path


def write_new_file(path: Path, content: bytes) -> None:
    """Write a file that is not there yet, durable on return.

    Raises:
        FileExistsError: there is something of that name; a link is not followed.
    """
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a kill, finds the old content or the new one.

    Args:
        path: its folder is made where it is missing.
        content: all of it.

    Raises:
        OSError: it could not be written; the old content stands.
    """
    temporary = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)  # left by a write that was killed
    try:
        write_new_file(temporary, content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
