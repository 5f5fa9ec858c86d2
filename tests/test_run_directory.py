import contextlib
import os
import subprocess
import sys

import pytest

from ultimus_ignite.run_directory import RunDirectory, RunDirectoryError


def begin(path, status="finished"):
    directory = RunDirectory(path)
    endings = {KeyError: "interrupted"}
    with (
        directory.open(),
        contextlib.suppress(KeyError, ValueError),
        directory.running({"data": {"name": "digits"}}, endings),
    ):
        if status != "finished":
            raise KeyError if status == "interrupted" else ValueError
    return directory


def test_a_folder_that_holds_a_run_is_refused_without_resume(tmp_path):
    begin(tmp_path / "run")
    with (
        pytest.raises(RunDirectoryError, match="already holds a run.*--resume"),
        RunDirectory(tmp_path / "run").open(),
    ):
        pass
    with RunDirectory(tmp_path / "run").open(resume=True):
        pass


def test_a_folder_in_which_no_run_began_is_removed(tmp_path):
    with pytest.raises(KeyError), RunDirectory(tmp_path / "a" / "b").open():
        raise KeyError
    assert not (tmp_path / "a" / "b").exists()


def test_a_folder_that_was_there_stays_with_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with RunDirectory(tmp_path).open():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_in_the_folders_place_is_named(tmp_path):
    path = tmp_path / "run"
    path.write_text("")
    with pytest.raises(RunDirectoryError, match="run cannot be written"), RunDirectory(path).open():
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_parent_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with (
        pytest.raises(RunDirectoryError, match="cannot be written"),
        RunDirectory(tmp_path / "run").open(),
    ):
        pass


HOLD = """
import sys
from ultimus_ignite.run_directory import RunDirectory
with RunDirectory(sys.argv[1]).open(resume=True) as directory:
    with directory.running({"data": {"name": "digits"}}, {}):
        print("held", flush=True)
        sys.stdin.read()
"""


def test_one_process_at_a_time_and_a_killed_one_leaves_no_lock(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(RunDirectoryError, match="still going"),
            RunDirectory(tmp_path).open(resume=True),
        ):
            pass
        holder.kill()
        holder.wait()
        with RunDirectory(tmp_path).open(resume=True) as directory:
            assert directory.read_status()["status"] == "running"


@pytest.mark.parametrize("ending", ["finished", "interrupted", "failed"])
def test_the_status_carries_its_facts(tmp_path, ending):
    directory = begin(tmp_path / "run", ending)
    status = directory.read_status()
    assert status == {"status": ending, "data": "digits", "pid": os.getpid()}


@pytest.mark.parametrize("signalled", [KeyboardInterrupt, SystemExit])
def test_another_signal_while_the_status_is_written(tmp_path, monkeypatch, signalled):
    directory = RunDirectory(tmp_path / "run")
    write, ends = directory._write_status, []

    def interrupted(status, facts):
        if status != "running" and not ends:
            ends.append(status)
            raise signalled
        write(status, facts)

    monkeypatch.setattr(directory, "_write_status", interrupted)
    with (
        pytest.raises(signalled),
        directory.open(),
        directory.running({"data": {"name": "digits"}}, {KeyError: "interrupted"}),
    ):
        raise KeyError
    assert directory.read_status()["status"] == "interrupted"
