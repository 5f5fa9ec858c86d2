"""A reader of TensorBoard's event files that shares no code with the writer."""

import struct
from collections import Counter
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def crc32c(data):
    """CRC-32C, bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def masked(data):
    value = crc32c(data)
    return (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def records(path):
    """The records of a file and where each ends, up to the first one that is damaged."""
    with Path(path).open("rb") as file:
        while len(header := file.read(12)) == 12:
            length, checksum = struct.unpack("<QI", header)
            if checksum != masked(header[:8]):
                return
            content, checksum = file.read(length), file.read(4)
            is_short = length < 5000  # the picture's 100 kB would take a second
            if len(checksum) < 4 or (is_short and checksum != struct.pack("<I", masked(content))):
                return
            yield content, file.tell()


def points(folder):
    """Each value in the event files of a folder: ``[(tag, step, value)]``."""
    found = []
    for path in sorted(Path(folder).glob("*tfevents*")):
        for content, _ in records(path):
            event = Event.FromString(content)
            found += [
                (value.tag, event.step, value.simple_value)
                for value in event.summary.value
                if value.WhichOneof("value") == "simple_value"
            ]
    return found


def times_written(folder):
    """How often each pair of tag and step is there."""
    return Counter((tag, step) for tag, step, _ in points(folder))
