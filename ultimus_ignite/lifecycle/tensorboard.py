"""TensorBoard's copy of a run: each epoch and the result once, over all files of its folder."""

import contextlib
import json
import socket
import struct
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from tensorboardX import RecordWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import hparams, image
from typing_extensions import Self

from ultimus_ignite.handlers.support.history_csv import Row


class EpochEvents:
    """Writes the rows of a `History` to TensorBoard's event files, and what they lack.

    A process appends to a file of its own, which it makes with its first epoch and flushes with
    each. tensorboardX's ``SummaryWriter`` writes from a queue that nobody can wait for, so a kill
    loses the last epochs, and a full disk blocks the run.

    Args:
        folder: the folder of the run.

    Example:
        >>> import tempfile
        >>> rows = [{"epoch": 1, "train_loss": 2.0}, {"epoch": 2, "train_loss": 1.5}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for known in rows[:1], rows:  # the second one resumes the first
        ...         with EpochEvents(Path(folder)) as events:
        ...             events.write(known)
        ...     sorted(scalars(Path(folder)))
        [('epoch/train_loss', 1), ('epoch/train_loss', 2)]
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: RecordWriter | None = None
        self._held: set[tuple[str, int]] | None = None  # None: not read yet

    def write(self, rows: Sequence[Row]) -> None:
        """Write what the files lack of these rows, durable on return.

        Only rank 0 writes. If this fails (a full disk), it only warns: the next epoch tries again.
        """
        if idist.get_rank() != 0:
            return
        with self._writing() as held:
            for row in rows:
                self._add_row(row, held)

    def write_result(
        self, recipe: Mapping[str, Any], result: Mapping[str, float | None], epoch: int
    ) -> None:
        """Write what TensorBoard's HParams tab compares runs by, once, durable on return.

        Only rank 0 writes. If this fails (a full disk), it only warns.

        Args:
            recipe: the fields of the recipe; those that are None are left out.
            result: what the final weights are worth, which becomes the scalars ``final/*``.
            epoch: the last one of the run.
        """
        if idist.get_rank() != 0:
            return
        values = {f"final/{name}": value for name, value in result.items() if value is not None}
        with self._writing() as held:
            if held.issuperset((tag, epoch) for tag in values):
                return
            fields = {
                name: json.dumps(value) if isinstance(value, dict) else value
                for name, value in recipe.items()
            }
            # The first of the three lists the fields and scalars to show. TensorBoard would take
            # the list of one run for all; without any, it looks at what each run has.
            _, start, end = hparams(fields, {})
            points = [Summary.Value(tag=tag, simple_value=values[tag]) for tag in values]
            self._add(Summary(value=[*start.value, *end.value, *points]), epoch)
            held.update((tag, epoch) for tag in values)

    def add_image(self, tag: str, pixels: Any, step: int, dataformats: str) -> None:
        """Write a picture, with the arguments of ``SummaryWriter.add_image``."""
        self._add(image(tag, pixels, dataformats=dataformats), step)

    def close(self) -> None:
        """Close this process's file; the next `write` looks again at what the files hold."""
        writer, self._writer, self._held = self._writer, None, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[set[tuple[str, int]]]:
        """Give what the files hold, and flush what is written; a failure only warns."""
        try:
            if self._held is None:
                self._held = set(scalars(self.folder))
            yield self._held
            if self._writer is not None:
                self._writer.flush()
        except OSError as error:
            warnings.warn(f"{self.folder}: no TensorBoard events: {error.strerror}", stacklevel=2)
            self.close()

    def _add_row(self, row: Row, held: set[tuple[str, int]]) -> None:
        epoch = int(row["epoch"] or 0)
        values = {
            f"epoch/{name}": value
            for name, value in row.items()
            if name not in ("epoch", "iteration") and value is not None
        }
        lacking = [tag for tag in values if (tag, epoch) not in held]
        if lacking:  # one record, of which a kill leaves all or nothing
            points = [Summary.Value(tag=tag, simple_value=values[tag]) for tag in lacking]
            self._add(Summary(value=points), epoch)
            held.update((tag, epoch) for tag in lacking)

    def _add(self, summary: Summary, step: int) -> None:
        now = time.time()
        if self._writer is None:
            # tensorboardX's own names have seconds: a run resumed at once would empty its file.
            name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
            self._writer = RecordWriter(str(self.folder / name))
            first = Event(wall_time=now, file_version="brain.Event:2")
            self._writer.write(first.SerializeToString())
        event = Event(wall_time=now, step=step, summary=summary)
        self._writer.write(event.SerializeToString())


def scalars(folder: Path) -> Iterator[tuple[str, int]]:
    """Tag and step of each scalar in the event files of a folder."""
    for path in folder.glob("events.out.tfevents.*"):
        for record in _records(path.read_bytes()):
            event = Event.FromString(record)
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    yield value.tag, event.step


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a TFRecord file up to the first damaged one, where TensorBoard stops, too.

    A record is its length in 8 bytes, their checksum in 4, its content, and the content's checksum.
    """
    start = 0
    while len(data) >= start + 12:
        length, checksum = struct.unpack_from("<QI", data, start)
        end = start + 12 + length
        if checksum != masked_crc32c(data[start : start + 8]) or len(data) < end + 4:
            return
        record = data[start + 12 : end]
        if struct.unpack_from("<I", data, end)[0] != masked_crc32c(record):
            return
        yield record
        start = end + 4
