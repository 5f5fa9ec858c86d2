"""The file beside a checkpoint: its digest, its run, and its place in the run's order.

A comment, which ``sha256sum --check`` passes over, says which checkpoint of which run it is:
iterations repeat, serial numbers do not.
"""

import hashlib
import re
import stat
import zlib
from pathlib import Path
from typing import NamedTuple

NAME = re.compile(r"ckpt-[0-9]{9,}\.pt")
_MOMENT = re.compile(
    rf"(?P<digest>[0-9a-f]{{64}})  (?P<name>{NAME.pattern})\n"
    r"(?:# run (?P<run>[0-9a-z-]+) serial (?P<serial>[0-9]+) check (?P<check>[0-9a-f]{8})\n)?"
)
NO_RUN = "-"


class Moment(NamedTuple):
    """What stands beside a checkpoint: its digest, its run, and its place in the run's order."""

    digest: str
    run: str = NO_RUN
    serial: int = 0  # one more with every save into the folder; 0 of version 0.1.0

    @property
    def check(self) -> str:
        """Tells of a flipped bit in the comment."""
        return f"{zlib.crc32(f'{self.digest} {self.run} {self.serial}'.encode()):08x}"

    def text(self, name: str) -> str:
        """The lines of the file beside ``name``."""
        comment = f"# run {self.run} serial {self.serial} check {self.check}"
        return f"{self.digest}  {name}\n{comment}\n"


def sidecar_of(path: Path) -> Path:
    """Where a checkpoint's digest stands."""
    return path.with_name(f"{path.name}.sha256")


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file.

    Raises:
        ValueError: it is something else, or has more than ``limit`` bytes.
    """
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for a writer
        raise ValueError("it is not a regular file")
    if status.st_size > limit:
        raise ValueError(f"{path.name} has {status.st_size} bytes, {limit} at most are read")
    with path.open("rb") as file:
        return file.read(status.st_size)


def read_moments(path: Path) -> list[Moment]:
    """What the file beside a checkpoint says: two moments while one is being replaced.

    Raises:
        ValueError: it is damaged.
    """
    text = read_regular(sidecar_of(path), limit=4096).decode("ascii")
    found = list(_MOMENT.finditer(text))
    moments = [
        Moment(match["digest"], match["run"] or NO_RUN, int(match["serial"] or 0))
        for match in found
    ]
    is_sound = all(
        match["name"] == path.name and match["check"] in (None, moment.check)
        for match, moment in zip(found, moments, strict=True)
    )
    if not text or text != "".join(match[0] for match in found) or not is_sound:
        raise ValueError(f"{sidecar_of(path).name} is damaged")
    return moments


def read_moment(path: Path) -> Moment | None:
    """Which checkpoint of which run it is, None where nothing says so."""
    try:
        moments = read_moments(path)
        if len(moments) > 1:  # a save was cut off between its two moves
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            moments = [moment for moment in moments if moment.digest == digest]
        return moments[0]
    except (OSError, ValueError, IndexError):
        return None
