"""What a file's mark tells, and how marks are found."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultimus_ignite.data.marks import find_marks, mark_files


def test_a_missing_file_has_no_mark(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        mark_files([str(tmp_path / "missing")])


def test_a_mark_depends_on_path_and_content(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a", "b")]
    for path in paths:
        Path(path).write_bytes(b"1")
    first = mark_files(paths)
    assert first.shape == (2, 32)
    assert (first == mark_files(paths)).all()
    assert (first[0] != first[1]).any()
    Path(paths[1]).write_bytes(b"2")
    assert (first == mark_files(paths)).all(1).tolist() == [True, False]


@given(wanted=st.lists(st.integers(0, 9)), known=st.lists(st.integers(0, 9), unique=True))
def test_marks_are_found_where_they_are(wanted: list[int], known: list[int]) -> None:
    marks = np.random.default_rng(0).integers(0, 256, (10, 32), dtype=np.uint8)
    marks[5] = 0
    marks[7, :8] = marks[8, :8]  # all 32 bytes count
    expected = [known.index(number) if number in known else -1 for number in wanted]
    found = find_marks(marks[wanted].reshape(-1, 32), marks[known].reshape(-1, 32))
    for row, (one, other) in enumerate(zip(found.tolist(), expected, strict=True)):
        assert one == other or (one == -1 and wanted[row] in (7, 8) and {7, 8} <= {*known})
