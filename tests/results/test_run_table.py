"""The table of runs, of folders that are whole, damaged, nested and linked in circles."""

import contextlib
import csv
import io
import json
import os
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultimus_ignite.commands import runs
from ultimus_ignite.errors import UserError
from ultimus_ignite.results.run_table import (
    COLUMNS,
    RunRow,
    find_runs,
    format_table,
    read_row,
    sort_rows,
)
from ultimus_ignite.run_directory import RunDirectory

FILES = ["status.json", "recipe.json", "history.csv"]


def make_run(folder, rng, *, epochs=5, split="test", fail=None):
    """The folder of a run, as a run writes it; returns its accuracies and seconds."""
    accuracies = [rng.random() for _ in range(epochs)]
    seconds = [100 * rng.random() for _ in range(epochs)]
    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "recipe": {"model": f"Net{rng.randrange(9)}", "seed": 1, "epochs": 7},
        "data": {"name": "digits"},
    }
    directory = RunDirectory(folder)
    with (
        directory.open(resume=True),
        contextlib.suppress(KeyboardInterrupt, OSError),
        directory.running(description, {KeyboardInterrupt: "interrupted"}) as facts,
    ):
        with directory.history.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", "iteration", "lr", f"{split}_accuracy", "seconds"])
            for n, row in enumerate(zip(accuracies, seconds, strict=True), start=1):
                writer.writerow([n, 3 * n, 0.1, *row])
        if fail:
            raise fail
        facts["test_accuracy"] = 0.5
    return accuracies, seconds


def content(folder):
    """Every file with its bytes and times."""
    return {
        path: (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("split", ["test", "val"])
@pytest.mark.parametrize("fail", [None, KeyboardInterrupt(), OSError()])
def test_a_row_tells_what_was_written(tmp_path, split, fail):
    rng = random.Random(f"{split}{fail!r}")
    accuracies, seconds = make_run(tmp_path / "a", rng, split=split, fail=fail)
    times = [rng.randrange(2**31) for _ in range(2)]
    for name, time in zip(("status.json", "history.csv"), times, strict=True):
        os.utime(tmp_path / "a" / name, (time, time))
    row = read_row(tmp_path / "a", "a")
    assert row.best_accuracy == max(accuracies)
    assert row.last_accuracy == accuracies[-1]
    assert row.seconds == pytest.approx(sum(seconds), rel=1e-9)
    assert (row.epochs_done, row.epochs, row.judged_by, row.problem) == (5, 7, split, None)
    expected = {None: "finished", KeyboardInterrupt: "interrupted", OSError: "failed"}
    assert row.status == expected[fail and type(fail)]
    assert row.test_accuracy == (None if fail else 0.5)
    assert row.when.timestamp() == max(times)


def test_a_killed_run_and_one_that_goes_on_differ(tmp_path):
    make_run(tmp_path / "a", random.Random(0))
    path = tmp_path / "a" / "status.json"
    path.write_text('{"status": "running"}')
    assert read_row(tmp_path / "a", "a").status == "interrupted (killed)"
    with RunDirectory(tmp_path / "a").open(resume=True):
        assert read_row(tmp_path / "a", "a").status == "running"


def test_runs_within_runs_and_links_in_circles(tmp_path):
    names = ["a", "a/seed-1", "a/seed-2", "b/c/d", "checkpoints/e"]
    for name in names:
        make_run(tmp_path / "runs" / name, random.Random(name))
    make_run(tmp_path / "elsewhere" / "f", random.Random(0))
    (tmp_path / "runs" / "b" / "loop").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / "b" / "self").symlink_to("self")
    (tmp_path / "runs" / "z").symlink_to(tmp_path / "elsewhere")
    only_saved = tmp_path / "runs" / "y" / "checkpoints"
    only_saved.mkdir(parents=True)
    (only_saved / "ckpt-1.pt").touch()
    make_run(only_saved / "copy", random.Random(0))
    (tmp_path / "runs" / "pictures" / "checkpoints").mkdir(parents=True)
    found = [str(path.relative_to(tmp_path / "runs")) for path in find_runs(tmp_path / "runs")]
    assert found == ["a", "a/seed-1", "a/seed-2", "b/c/d", "checkpoints/e", "y", "z/f"]


VALUES = st.none() | st.text(max_size=5) | st.integers() | st.floats() | st.booleans()
JSON = st.recursive(VALUES, lambda x: st.lists(x) | st.dictionaries(st.text(max_size=5), x))


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_damage_is_a_row_and_json_that_any_reader_takes(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    make_run(folder / "a", random.Random(0))
    path = folder / "a" / data.draw(st.sampled_from(FILES))
    damage = data.draw(st.sampled_from(["missing", "cut", "bytes", "value", "json"]))
    old = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(old[: data.draw(st.integers(0, len(old)))])
    elif damage == "bytes":
        path.write_bytes(data.draw(st.binary(max_size=50)))
    elif damage == "json":
        path.write_text(json.dumps(data.draw(JSON)))
    elif path.suffix == ".json":
        text = json.loads(old)
        place = data.draw(st.sampled_from([text, *(v for v in text.values() if type(v) is dict)]))
        place[data.draw(st.sampled_from(sorted(place)))] = data.draw(JSON)
        path.write_text(json.dumps(text))
    before = content(folder)
    row = read_row(folder / "a", "a")
    assert content(folder) == before
    assert damage != "missing" or str(path) in row.problem
    assert row.problem or damage != "bytes"
    for column in COLUMNS:
        assert len(format_table(sort_rows([row, row], column)).splitlines()) >= 3
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runs.main("ultimus runs", [str(folder), "--json"])

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    (listed,) = json.loads(printed.getvalue(), parse_constant=refuse)
    assert listed["problem"] == row.problem


def test_what_is_no_number_is_unknown(tmp_path, capsys):
    make_run(tmp_path, random.Random(0), epochs=0)
    description = {"recipe": {"model": "Net", "seed": 1, "epochs": float("inf")}}
    description["data"] = {"name": "digits"}
    (tmp_path / "recipe.json").write_text(json.dumps(description))
    (tmp_path / "status.json").write_text('{"status": "interrupted", "test_accuracy": NaN}')
    row = read_row(tmp_path, "a")
    assert (row.epochs, row.test_accuracy, row.problem) == (None, None, None)
    runs.main("ultimus runs", [str(tmp_path), "--json"])
    printed = capsys.readouterr().out
    assert "Infinity" not in printed
    assert json.loads(printed)[0]["recipe"]["epochs"] is None


def test_a_table_of_something_else_is_no_history(tmp_path):
    make_run(tmp_path, random.Random(0))
    (tmp_path / "history.csv").write_text("a,b\n1,2\n")
    assert "it has no epoch or no seconds" in read_row(tmp_path, "a").problem


def test_what_is_unknown_is_a_dash():
    blank = dict.fromkeys(RunRow.__dataclass_fields__) | {"name": "a", "epochs_done": 0}
    unknown, whole = RunRow(**blank), RunRow(**blank | {"last_accuracy": 0.5, "seconds": 60})
    assert format_table([unknown]).splitlines()[1].split() == [
        "a", "-", "-", "-", "0/?", "-", "-", "-", "-", "-"
    ]  # fmt: skip
    assert format_table([whole]).splitlines()[1].split()[6:9] == ["50.00%", "-", "60"]


def test_deeply_nested_json_is_damage(tmp_path):
    make_run(tmp_path / "a", random.Random(0))
    (tmp_path / "a" / "status.json").write_text("[" * 100_000)
    row = read_row(tmp_path / "a", "a")
    assert row.status is None
    assert "status.json cannot be read (damaged)" in row.problem
    assert row.epochs_done == 5


def test_sorted_by_each_column_with_the_unknown_last():
    rng = random.Random(0)
    blank = dict.fromkeys(RunRow.__dataclass_fields__)
    for column, field in COLUMNS.items():
        values = rng.sample(range(1000), 8)
        if column in ("name", "status", "model", "data"):
            values = [str(value) for value in values]
        rows = [RunRow(**{**blank, field: value}) for value in [*values, None, None]]
        rng.shuffle(rows)
        expected = sorted(values) if isinstance(values[0], str) else sorted(values)[::-1]
        assert [getattr(row, field) for row in sort_rows(rows, column)] == [*expected, None, None]


def test_json_and_table_without_torch(tmp_path):
    rng = random.Random(0)
    made = {f"n\u00f6 {n}\n": make_run(tmp_path / f"n\u00f6 {n}\n", rng)[0] for n in range(20)}
    code = (
        "import sys; from ultimus_ignite import cli\n"
        "cli.call(cli.choose, 'ultimus', sys.argv[1:])\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    flags = ["runs", tmp_path, "--sort", "best"]
    table, listed = (
        subprocess.run([sys.executable, "-c", code, *flags, *more], capture_output=True, text=True)
        for more in ([], ["--json"])
    )
    assert table.stderr == listed.stderr == "False\n"
    best = sorted(made, key=lambda name: -max(made[name]))
    assert [row["name"] for row in json.loads(listed.stdout)] == best
    header, *lines = table.stdout.splitlines()
    assert header.split() == [*COLUMNS]
    assert len(lines) == 20
    for line, name in zip(lines, best, strict=True):
        assert line.startswith(name.strip())
        assert f"{max(made[name]):.2%}" in line


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_folder_without_runs_is_one_line(tmp_path, flags, capsys):
    runs.main("ultimus runs", [str(tmp_path), *flags])
    assert capsys.readouterr().out == ("[]\n" if flags else f"no run in {tmp_path}\n")


@pytest.mark.parametrize("name", ["missing", "file"])
def test_what_is_no_folder_is_refused(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"no folder .*{name}"):
        runs.main("ultimus runs", [str(tmp_path / name)])


def test_a_folder_that_cannot_be_read_is_a_warning(tmp_path, monkeypatch):
    make_run(tmp_path / "a", random.Random(0))
    (tmp_path / "b").mkdir()
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.warns(UserWarning, match="b cannot be read .Permission denied"):
        assert [path.name for path in find_runs(tmp_path)] == ["a"]
