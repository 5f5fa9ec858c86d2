"""The commands as a user meets them, in processes of their own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image
from processes import call

from ultimus_ignite import cli
from ultimus_ignite.errors import ExitCode, Interrupted
from ultimus_ignite.handlers import CheckpointError, LRFinderError, NonFiniteError

BIN = Path(__file__).parents[1] / "bin"


def make_folder(root, classes=("cat", "dog"), images=2):
    for split in ("train", "test"):
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                colour = (100 * label + 40, 10 * i, 50)
                Image.new("RGB", (32, 32), colour).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run on the digits and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    answer = call("train-cifar", "--data", "digits", "--epochs", 2, "--out", out, cwd=out.parent)
    assert answer.returncode == 0, answer.stderr
    return out, answer


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("command", [("train-cifar", "--help"), ("ultimus", "--help")])
def test_a_reader_that_leaves_hears_no_complaint(command, buffered):
    reader, writer = os.pipe()
    os.close(reader)
    answer = subprocess.run(
        [sys.executable, BIN / command[0], *command[1:]],
        stdout=writer, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": buffered},
    )  # fmt: skip
    os.close(writer)
    assert answer.stderr == ""
    assert answer.returncode in (0, 1)


def test_a_run_leaves_what_the_design_promises(finished):
    out, answer = finished
    assert answer.stderr == ""
    files = {path.name for path in out.iterdir()}
    promised = {
        "recipe.json", "status.json", "history.csv", "curves.png", "checkpoints",
        "model.safetensors", "log.txt",
    }  # fmt: skip
    assert promised <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert not any(name.endswith(".tmp") for name in files)
    assert '"status": "finished"' in (out / "status.json").read_text()
    assert (out / "log.txt").read_text() == answer.stdout


def test_the_log_has_the_seeds_form(finished):
    lines = finished[1].stdout.splitlines()
    assert lines[0] == "data: digits, 1437 training and 360 test images of 10 classes"
    assert lines[1] == "EPOCH: 1 (LR: 1.856635533445111e-05)"
    assert re.fullmatch(
        r"Batch_id=2 Loss=\S+ Accuracy=\S+%: 100%\|█{10}\| 3/3 \[.*it/s\]", lines[2]
    )
    assert re.fullmatch(
        r"Test set: Average loss: \d\.\d{4}, Accuracy: \d+/360 \(\d+\.\d\d%\)", lines[4]
    )


def test_a_folder_that_holds_a_run_is_refused_untouched(finished):
    out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    answer = call("train-cifar", "--data", "digits", "--out", out)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert "--resume" in answer.stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_plot_redraws_from_the_history(finished):
    out, _ = finished
    (out / "curves.png").unlink()
    answer = call("ultimus", "plot", out)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == f"{out / 'curves.png'}\n"
    with Image.open(out / "curves.png") as picture:
        assert picture.size == (1080, 960)


def test_a_folder_of_images_by_a_path_with_spaces_and_letters(tmp_path):
    folder = make_folder(tmp_path / "größe 1")
    answer = call(
        "train-cifar", "--data", f"folder:{folder}", "--data-dir", tmp_path / "ü cache",
        "--epochs", 2, "--out", tmp_path / "läuf 1", LC_ALL="C",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "läuf 1" / "history.csv").exists()


def test_a_folder_of_classes_alone_and_with_a_bad_file(tmp_path):
    make_folder(tmp_path, images=10)
    shutil.rmtree(tmp_path / "test")
    (tmp_path / "train" / "cat" / "bad\n.png").write_bytes(b"no image")
    (tmp_path / "train" / "labels.csv").write_text("")
    answer = call(
        "train-cifar", "--data", "folder:train", "--data-dir", "cache", "--skip-unreadable",
        "--epochs", 2, "--out", "out", cwd=tmp_path,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    how = "the test images are a stratified fifth of all, drawn with seed 0"
    assert re.fullmatch(rf"data: .* 1\d training and 4 test images of 2 classes; {how}", lines[0])
    assert lines[1] == "passed over: 1 file or folder that is not an image (labels.csv)"
    assert re.fullmatch(r"left out: 1 unreadable file \(.*/train/cat/bad .png\)", lines[2])
    data = json.loads((tmp_path / "out" / "recipe.json").read_text())["data"]
    assert data["held_out"] == how
    assert data["notes"] == lines[1:3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "nope"], "nope.*classic"),
        (["--epochs", "many"], "--epochs.*many"),
        (["--epochs", "0"], "epochs must be at least 1"),
        (["--max-lr", "nan"], "max_lr must be positive"),
        (["--wrong", "1"], "--wrong"),
        (["--data", "mnist"], "cifar10.*digits.*mnist"),
        (["--data", "folder:missing"], "missing"),
        (["--data", "cifar-10"], r"did you mean cifar10\?"),
        (["--data", "broken"], r"did you mean folder:broken\?"),
        (["--data", "folder:one\udcff"], "not UTF-8"),
        (["--data-dir", "\udcff"], "not UTF-8"),
        (["--data", ""], "--data: expected a value, got an empty text"),
        (["--data="], "--data=: expected a value, got an empty text"),
        (["--device", "cuda:99", "--data", "digits"], "cuda:99.*auto"),
        (
            ["--data", "digits", "--epochs", "1", "--batch-size", "9999"],
            "in 1 iteration .*--epochs",
        ),
        (["--data", "folder:empty"], "empty.*train"),
        (["--data", "folder:broken"], r"broken.*1\.png"),
        (["--data", "digits", "--device", "tpu9"], "auto.*tpu9"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    make_folder(tmp_path / "broken")
    (tmp_path / "broken" / "test" / "cat" / "1.png").write_bytes(b"no image")
    answer = call("train-cifar", *arguments, "--out", "out", "--data-dir", "cache", cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.count("\n") == 1
    assert re.search(message, answer.stderr), answer.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_folders_place_is_one_line(tmp_path):
    (tmp_path / "out").write_text("mine")
    answer = call("train-cifar", "--data", "digits", "--out", tmp_path / "out")
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert "cannot be written" in answer.stderr
    assert (tmp_path / "out").read_text() == "mine"


MISTAKES = [
    ["--data", "cifar-10"], ["--data", "folder:missing"], ["--data", "folder:"], ["--seed="],
    ["--device", "tpu9"], ["--max-lr", "nan"], ["--epochs", str(10**30)], ["--data-dir", "\udcff"],
]  # fmt: skip
OUTS = ["file", "file/below", "dangling", "a" * 300, "/proc/a", "nul\0", "a/../file/b"]


@pytest.mark.parametrize("name", ["train", "find-lr", "plot-schedule", "repeat"])
def test_what_the_flags_tell_is_refused_before_torch_is_loaded(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    code = (
        "import sys; from ultimus_ignite import cli\n"
        f"for flags in {MISTAKES!r} + [['--data', 'digits', '--out', out] for out in {OUTS!r}]:\n"
        f"    print(cli.call(lambda *args: cli.dispatch('it', {name!r}, flags), 'it', []))\n"
        "print('torch' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert answer.stdout == "2\n" * len(MISTAKES + OUTS) + "False\n"
    lines = answer.stderr.splitlines()
    assert len(lines) == len(MISTAKES + OUTS)
    for line in lines:
        assert line.startswith("it: ")
    for line in lines[len(MISTAKES) :]:
        assert re.fullmatch(r"it: .* cannot be written \(.*\): choose another --out", line)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file"]


def test_no_network_for_cifar10_is_one_line(tmp_path):
    nowhere = "http://127.0.0.1:9"  # the discard port: refused at once
    answer = call(
        "train-cifar", "--data", "cifar10", "--out", "out", "--data-dir", "cache", cwd=tmp_path,
        https_proxy=nowhere, http_proxy=nowhere,
    )  # fmt: skip
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert "--data digits" in answer.stderr
    assert not (tmp_path / "out").exists()


def test_auto_without_network_says_loudly_that_it_trains_on_digits(tmp_path):
    nowhere = "http://127.0.0.1:9"
    answer = call(
        "train-cifar", "--epochs", 1, "--out", "out", "--data-dir", "cache", cwd=tmp_path,
        https_proxy=nowhere, http_proxy=nowhere,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "DIGITS" in answer.stdout.splitlines()[0]
    assert '"data": "digits"' in (tmp_path / "out" / "status.json").read_text()


@pytest.mark.parametrize("command", ["find-lr --iterations 3", "plot-schedule", "doctor"])
def test_every_command_says_loudly_that_it_uses_digits(tmp_path, command):
    nowhere = "http://127.0.0.1:9"
    answer = call(
        "ultimus", *command.split(), "--out", "out", "--data-dir", "cache", cwd=tmp_path,
        https_proxy=nowhere, http_proxy=nowhere,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "USING HANDWRITTEN DIGITS INSTEAD" in answer.stdout
    assert "data: digits, 1437 training" in answer.stdout


def test_a_warning_is_a_sentence(tmp_path):
    make_folder(tmp_path / "DIR")
    answer = call(
        "train-cifar", "--data", "folder:DIR", "--data-dir", "/proc/a", "--epochs", 2, cwd=tmp_path
    )
    assert answer.returncode == 0, answer.stderr
    warning = (
        r"train-cifar: warning: /proc/a/.* cannot be written \(.*\); the images .* next time\n"
    )
    assert re.fullmatch(warning, answer.stderr)


def test_a_warning_of_torch_is_without_its_own_source(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back at the end
    cli.call(lambda *_: None, "ultimus", [])
    message = UserWarning("no\nGPU (Triggered internally at ../c10/a.cpp:9.)")
    text = warnings.formatwarning(message, UserWarning, "a.py", 1, "a = 1")
    assert text == "ultimus: warning: no GPU\n"


def test_debug_shows_the_traceback(tmp_path):
    answer = call("train-cifar", "--data", "mnist", "--out", tmp_path / "out", "--debug")
    assert answer.returncode != 0
    assert "Traceback" in answer.stderr


def test_the_script_in_bin_lists_every_field():
    text = subprocess.run(
        [sys.executable, BIN / "train-cifar", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for flag in ("--recipe", "--data", "--data-dir", "--out", "--resume", "--epochs",
                 "--batch-size", "--max-lr", "--seed", "--device"):  # fmt: skip
        assert flag in text


@pytest.mark.parametrize("command", ["train-cifar", "ultimus"])
def test_the_version_is_that_of_the_package(command, tmp_path):
    pyproject = (BIN.parent / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.*)"$', pyproject, flags=re.MULTILINE)[1]
    assert call(command, "--version", cwd=tmp_path).stdout == f"ultimus-ignite {version}\n"


SEED_LAYERS = """
Conv2d-1 [-1, 16, 30, 30] 448
Conv2d-2 [-1, 32, 28, 28] 4,640
Conv2d-3 [-1, 48, 26, 26] 13,872
AvgPool2d-4 [-1, 48, 1, 1] 0
Linear-5 [-1, 8] 384
Linear-6 [-1, 8] 384
Linear-7 [-1, 8] 384
Linear-8 [-1, 48] 432
UltimusBlock-9 [-1, 48] 0
Linear-10 [-1, 8] 384
Linear-11 [-1, 8] 384
Linear-12 [-1, 8] 384
Linear-13 [-1, 48] 432
UltimusBlock-14 [-1, 48] 0
Linear-15 [-1, 8] 384
Linear-16 [-1, 8] 384
Linear-17 [-1, 8] 384
Linear-18 [-1, 48] 432
UltimusBlock-19 [-1, 48] 0
Linear-20 [-1, 8] 384
Linear-21 [-1, 8] 384
Linear-22 [-1, 8] 384
Linear-23 [-1, 48] 432
UltimusBlock-24 [-1, 48] 0
Linear-25 [-1, 10] 490
""".strip().splitlines()


def test_summary_prints_the_seeds_table():
    lines = call("ultimus", "summary").stdout.splitlines()
    assert [" ".join(line.split()) for line in lines[:25]] == SEED_LAYERS
    assert lines[0] == "            Conv2d-1           [-1, 16, 30, 30]             448"
    assert lines[23] == "     UltimusBlock-24                   [-1, 48]               0"
    assert "Total params: 25,786" in lines
    assert lines[-1] == "Classes: 10 (--data auto)"


@pytest.mark.parametrize(("data", "parameters"), [("cifar100", "30,196"), ("folder:DIR", "25,394")])
def test_summary_counts_for_the_classes_of_the_data(tmp_path, data, parameters):
    make_folder(tmp_path / "DIR")
    answer = call("ultimus", "summary", "--data", data, "--data-dir", "cache", cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert f"\nTotal params: {parameters}\n" in answer.stdout


def test_an_unknown_subcommand_is_one_line():
    answer = call("ultimus", "dance")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert re.fullmatch(r"ultimus: .*dance.*summary.*\n", answer.stderr)


@pytest.mark.parametrize("command", ["train", "find-lr", "plot-schedule", "repeat", "plot"])
def test_a_home_that_is_nobodys_is_one_line(tmp_path, command):
    path = ["~nobody-at-all/a"] if command == "plot" else ["--out", "~nobody-at-all/a"]
    answer = call("ultimus", command, *path, cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert re.fullmatch("ultimus: ~nobody-at-all/a: no such user: .*\n", answer.stderr)


def test_a_name_is_said_as_it_is(tmp_path):
    answer = call("ultimus", "evaluate", "two  spaces", cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "two  spaces" in answer.stderr


def test_plot_of_no_run_is_one_line(tmp_path):
    for name in ("none", "a" * 300):
        answer = call("ultimus", "plot", "--debug", tmp_path / name)
        assert answer.returncode == 2
        assert re.fullmatch(rf"ultimus: .*{name}/history.csv not found.*\n", answer.stderr)


@pytest.mark.parametrize("content", [None, "", '{"recipe": {"model": "Ult', "[1]", "{}"])
def test_plot_does_not_need_the_recipe(finished, tmp_path, content):
    shutil.copy(finished[0] / "history.csv", tmp_path)
    if content is not None:
        (tmp_path / "recipe.json").write_text(content)
    assert call("ultimus", "plot", tmp_path).returncode == 0
    assert (tmp_path / "curves.png").exists()


def test_plot_of_a_damaged_history_is_one_line(tmp_path):
    (tmp_path / "history.csv").write_text("epoch,iteration,lr,seconds\none,2,3,4\n")
    answer = call("ultimus", "plot", tmp_path)
    assert answer.returncode == 2
    assert re.fullmatch(r"ultimus: .*history.csv: not a history \(.*one.*\)\n", answer.stderr)


def test_the_handlers_errors_have_the_documented_exit_codes():
    assert CheckpointError.exit_code == ExitCode.CHECKPOINT_REFUSED
    assert NonFiniteError.exit_code == ExitCode.NON_FINITE
    assert LRFinderError.exit_code == ExitCode.BAD_INPUT
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    assert [Interrupted(number).exit_code for number in numbers] == [
        ExitCode.HUNG_UP, ExitCode.INTERRUPTED, ExitCode.TERMINATED,
    ]  # fmt: skip
