"""The ``.sha256`` file of a checkpoint: its digest, its run and its serial number.

The run and the serial number are in a comment, which ``sha256sum --check`` ignores. Serial numbers
order the checkpoints, as a run may come to the same iteration twice.
"""

import hashlib
import re
import stat
import zlib
from pathlib import Path
from typing import NamedTuple

NAME = re.compile(r"ckpt-[0-9]{9,}\.pt")
_MOMENT = re.compile(
    rf"(?P<digest>[0-9a-f]{{64}})  {NAME.pattern}\n"
    r"(?:# run (?P<run>[0-9a-z-]+) serial (?P<serial>[0-9]+) check [0-9a-f]{8}\n)?"
)
NO_RUN = "-"


class Moment(NamedTuple):
    """The digest of a checkpoint, and which save of which run wrote it."""

    digest: str
    run: str = NO_RUN
    serial: int = 0  # number of the save into its folder, from 1; 0 if version 0.1.0 wrote it

    def text(self, name: str) -> str:
        """The lines in the ``.sha256`` file of the checkpoint ``name``."""
        line = f"{self.digest}  {name}\n"
        if self.serial == 0:  # version 0.1.0 wrote no comment
            return line
        check = zlib.crc32(f"{self.digest} {self.run} {self.serial}".encode())
        return f"{line}# run {self.run} serial {self.serial} check {check:08x}\n"


def sidecar_of(path: Path) -> Path:
    """The path of a checkpoint's ``.sha256`` file."""
    return path.with_name(f"{path.name}.sha256")


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file.

    Raises:
        ValueError: it is not a regular file, or has more than ``limit`` bytes.
    """
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for a writer
        raise ValueError("it is not a regular file")
    if status.st_size > limit:
        raise ValueError(f"{path.name} has {status.st_size} bytes, {limit} at most are read")
    with path.open("rb") as file:
        return file.read(status.st_size)


def read_moments(path: Path) -> list[Moment]:
    """The moments in a checkpoint's ``.sha256`` file; two or more while it is being replaced.

    Raises:
        ValueError: the file is damaged.
    """
    text = read_regular(sidecar_of(path), limit=4096).decode("ascii")
    moments = [
        Moment(match["digest"], match["run"] or NO_RUN, int(match["serial"] or 0))
        for match in _MOMENT.finditer(text)
    ]
    # An undamaged text is equal to the text of its moments, checksums included.
    if not moments or text != "".join(moment.text(path.name) for moment in moments):
        raise ValueError(f"{sidecar_of(path).name} is damaged")
    return moments


def read_moment(path: Path) -> Moment | None:
    """The moment of a checkpoint, None if unknown."""
    try:
        moments = read_moments(path)
        if len(moments) > 1:  # a save was killed between its moves
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            moments = [moment for moment in moments if moment.digest == digest]
        return moments[0]
    except (OSError, ValueError, IndexError):
        return None
