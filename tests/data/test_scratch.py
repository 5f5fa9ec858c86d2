"""`scratch_folder`: private, gone afterwards, and swept where a killed process left one."""

import os
import time
from pathlib import Path

import pytest

from ultimus_ignite.data.scratch import scratch_folder


def test_it_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    parent = tmp_path / "made" / "with parents"
    with scratch_folder(parent) as scratch:
        assert scratch.parent == parent
        assert scratch.stat().st_mode & 0o777 == 0o700
        (scratch / "file").write_text("content")
    assert not list(parent.iterdir())


def test_it_is_gone_after_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_two_at_once_do_not_meet(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as one, scratch_folder(tmp_path) as other:
        assert one != other
        assert one.is_dir()


def test_only_what_is_a_day_old_is_swept(tmp_path: Path) -> None:
    for name, hours in {".scratch-old": 25, ".scratch-live": 23, "old-data": 1000}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text("")
        os.utime(tmp_path / name, (time.time() - hours * 3600,) * 2)
    with scratch_folder(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {".scratch-live", "old-data"}
