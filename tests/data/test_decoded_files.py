"""What is on disk is right or has no mark, whatever happens while it is written."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultimus_ignite.data import decoded_files
from ultimus_ignite.data.decoded_files import DecodedFiles, map_pixels, name_of, read_marks

SIZE = 4
GENERATOR = np.random.default_rng(0)
MARKS = GENERATOR.integers(0, 256, (12, 32), dtype=np.uint8)
IMAGES = GENERATOR.integers(1, 256, (12, 3, SIZE, SIZE), dtype=np.uint8)
NAME = name_of(MARKS)


def assert_right(folder: Path, rows: list[int]) -> None:
    """These rows are there, with their pixels, and have a mark; the others have none."""
    marks = read_marks(folder, NAME, SIZE)
    images = map_pixels(folder, NAME, len(marks), SIZE).numpy()
    assert np.flatnonzero(marks.any(axis=1)).tolist() == sorted(rows)
    np.testing.assert_array_equal(marks[rows], MARKS[rows])
    np.testing.assert_array_equal(images[rows], IMAGES[rows])


@settings(max_examples=30, deadline=None)
@given(parts=st.lists(st.lists(st.integers(0, 11), unique=True), min_size=1, max_size=4))
def test_each_start_keeps_what_was_stored(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("decoded")
    stored: list[int] = []
    for rows in parts:
        with DecodedFiles(folder, MARKS, SIZE) as files:
            assert np.flatnonzero(files.present).tolist() == sorted(stored)
            for row in rows:
                files.store(row, IMAGES[row])
        stored = sorted({*stored, *rows})
        assert_right(folder, stored)


@pytest.mark.parametrize("num_rows", [0, 1, 5])
def test_rows_that_the_file_lost_are_not_vouched_for(tmp_path: Path, num_rows: int) -> None:
    with DecodedFiles(tmp_path, MARKS, SIZE) as files:
        for row, image in enumerate(IMAGES):
            files.store(row, image)
    os.truncate(tmp_path / f"{NAME}.pixels", num_rows * IMAGES[0].size + 1)
    with DecodedFiles(tmp_path, MARKS, SIZE) as files:
        assert np.flatnonzero(files.present).tolist() == list(range(num_rows))
        assert_right(tmp_path, list(range(num_rows)))


@pytest.mark.parametrize("interval", [0, 1e9])
@pytest.mark.parametrize("lost_after", range(2, 24, 3))
def test_a_power_cut_leaves_no_mark_without_its_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: float, lost_after: int
) -> None:
    """The worst that a disk may do: it keeps marks that were not synced, and forgets pixels."""
    monkeypatch.setattr(decoded_files, "_INTERVAL", interval)
    pixels = tmp_path / f"{NAME}.pixels"
    durable = b""
    calls = 0
    real = os.fsync

    def sync(descriptor: int) -> None:
        nonlocal durable, calls
        calls += 1
        if calls > lost_after:
            raise KeyboardInterrupt
        real(descriptor)
        if Path(f"/proc/self/fd/{descriptor}").resolve() == pixels:
            durable = pixels.read_bytes()

    monkeypatch.setattr(os, "fsync", sync)
    try:
        with DecodedFiles(tmp_path, MARKS, SIZE) as files:
            for row, image in enumerate(IMAGES):
                files.store(row, image)
    except KeyboardInterrupt:
        pass
    monkeypatch.undo()
    pixels.write_bytes(durable.ljust(IMAGES.size, b"\0"))
    marked = np.flatnonzero(read_marks(tmp_path, NAME, SIZE).any(axis=1)).tolist()
    assert_right(tmp_path, marked)
    with DecodedFiles(tmp_path, MARKS, SIZE) as files:
        assert np.flatnonzero(files.present).tolist() == marked
