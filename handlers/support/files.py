"""Writes files so that a crash cannot leave a half-written one."""

import os
from pathlib import Path


def write_new_file(path: Path, content: bytes) -> None:
    """Write a new file, durable on return.

    Raises:
        FileExistsError: the path exists already, if only as a link.
    """
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file; at any moment it has all of its old content or all of the new.

    Args:
        path: missing folders are created.
        content: all bytes of the file.

    Raises:
        OSError: the write failed; the file keeps its old content.
    """
    temporary = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)  # left by a process killed while writing
    try:
        write_new_file(temporary, content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def create_folder(folder: Path) -> None:
    """Create a folder and its missing parents, durable on return."""
    if not folder.is_dir():
        create_folder(folder.parent)
        folder.mkdir()
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the creations, moves and deletions in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
