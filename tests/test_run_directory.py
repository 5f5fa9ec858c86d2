import contextlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultimus_ignite.run_directory import RunDirectory, RunDirectoryError, title_of


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


def listing(path):
    return {file: file.stat().st_mtime_ns for file in [path, *path.rglob("*")]}


def test_who_reads_a_status_is_told_whether_the_run_goes_on_and_touches_nothing(tmp_path):
    directory = RunDirectory(tmp_path)
    with directory.open(), directory.running({"data": {"name": "digits"}}, {}):
        before = listing(tmp_path)
        assert RunDirectory(tmp_path).read_status()["status"] == "running"
        with pytest.raises(RunDirectoryError, match="still going"), directory.open(resume=True):
            pass
        running = (tmp_path / "status.json").read_text()
        assert listing(tmp_path) == before
    assert directory.read_status()["status"] == "finished"
    (tmp_path / "status.json").write_text(running)  # what a kill leaves behind
    before = listing(tmp_path)
    assert directory.read_status()["status"] == "interrupted (killed)"
    assert listing(tmp_path) == before
    (tmp_path / ".lock").unlink()  # copied without it
    assert directory.read_status()["status"] == "interrupted (killed)"
    assert not (tmp_path / ".lock").exists()


def test_who_only_reads_the_status_is_in_nobodys_way(tmp_path):
    directory = begin(tmp_path)
    (tmp_path / "status.json").write_text('{"status": "running"}')
    end = threading.Event()

    def read():
        while not end.is_set():
            directory.read_status()

    with ThreadPoolExecutor(2) as pool:
        reading = [pool.submit(read) for _ in range(2)]
        try:
            for _ in range(300):
                with RunDirectory(tmp_path).open(resume=True):
                    pass
        finally:
            end.set()
    for future in reading:
        future.result()


FIELDS = st.sampled_from(["status", "recipe", "data", "model", "seed", "name"])
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(FIELDS | st.text(), inner),
)


@settings(max_examples=50, deadline=None)
@given(JSON.map(json.dumps).map(str.encode) | st.binary(), st.integers(0, 40))
def test_damaged_files_are_an_error_that_names_them(tmp_path_factory, content, kept):
    directory = RunDirectory(tmp_path_factory.mktemp("run"))
    directory.status.write_bytes(content[:kept])
    directory.description.write_bytes(content[:kept])
    errors = []
    for read, path in (
        (directory.read_status, directory.status),
        (lambda: title_of(directory.read_description()), directory.description),
    ):
        try:
            read()
        except RunDirectoryError as error:
            errors.append((f"{path} cannot be read (damaged)", str(error)))
    assert all(error.startswith(start) for start, error in errors)


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
