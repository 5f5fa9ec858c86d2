"""Flags and folders as they may come: each ends in a documented exit code and at most one line."""

import contextlib
import dataclasses
import io
import random
import shutil
import socket
import sys
import warnings

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from ultimus_ignite import cli
from ultimus_ignite.commands import doctor
from ultimus_ignite.data.digits import load_digits

CASES = 200
COUNTS = ["0", "-1", "1.5", "nan", "x", "", str(10**30)]
SHARES = ["-0.1", "1.1", "nan", "inf", "x", ""]
POSITIVES = ["0", "-1", "nan", "inf", "-inf", "1e400", "x", ""]
OUTS = [
    "file",
    "file/below",
    "dangling",
    "~nobody-at-all/a",
    "",
    "a" * 300,
    "nul\0",
    "latin-\udcff",
]

# For each flag, values that are right on their own, and values that are wrong whatever else is.
RECIPE = {
    "data": (
        ["folder:good", "digits", "auto"],
        ["cifar-10", "good", "folder:", "folder:missing", "folder:file", "folder:empty", "",
         "folder:torn", "folder:latin-\udcff", "folder:nul\0", "folder:" + "a" * 300],
    ),
    "data-dir": (["cache", "file"], ["", "\udcff"]),
    "recipe": (["classic", "tokens", "large"], ["Classic", ""]),
    "model": (
        ["UltimusNet", "UltimusTokenNet", "UltimusTokenNetLarge", "net.py:Net"],
        ["ultimusnet", "os:system", "", "net.py:Missing", "nowhere.py:Net", "no.such:Net", ":"],
    ),
    "model-args": (["{}"], ["{", "[]", "x", "", '{"nope": 1}', "null"]),
    "image-size": (["8", "24", "32", "33"], ["7", "5000", *COUNTS]),
    "epochs": (["1", "2", "3"], COUNTS),
    "batch-size": (["1", "3", str(10**9)], COUNTS),
    "accumulation-steps": (["2", str(10**9)], COUNTS),
    "checkpoint-every": (["1", "None", str(10**9)], COUNTS),
    "seed": (["0", str(2**63 - 1)], ["-1", "1.5", "x", "", str(2**63)]),
    "max-lr": (["1e-300", "1", "auto"], POSITIVES),
    "div-factor": (["0.5", "1e300"], POSITIVES),
    "final-div-factor": (["1", "1e300"], POSITIVES),
    "max-grad-norm": (["1e-300", "1", "None"], POSITIVES),
    "max-loss-ratio": (["1.5", "1e308", "None"], ["1", *POSITIVES]),
    "weight-decay": (["0", "1"], ["-1", "nan", "inf", "x", ""]),
    "pct-start": (["0", "0.5", "1"], SHARES),
    "label-smoothing": (["0", "1"], SHARES),
    "flip": (["0", "1"], SHARES),
    "cutout": (["0", "1"], SHARES),
    "grey": (["0", "1"], SHARES),
    "val-fraction": (["0", "0.5"], ["1", *SHARES]),
    "cutout-size": (["1", "32", "auto"], ["5000", *COUNTS]),
    "crop-padding": (["0", "31", "auto"], ["5000", "-1", "x", ""]),
    "anneal-strategy": (["cos"], ["cosine", ""]),
    "precision": (["auto", "float32", "bfloat16"], ["float8", ""]),
    "device": (["cpu", "auto"], ["cuda:99", "tpu9", "CPU", "cpu:-1", ""]),
}  # fmt: skip
OUT = {"out": (["out", "deep/er/out"], OUTS)}
OUT |= {"init": (["None"], ["nowhere", "good", "net.py", ""])}
OWN = {
    "train": OUT,
    "summary": {},
    "doctor": OUT,
    "plot-schedule": OUT,
    "repeat": OUT | {"seeds": (["1", "3,2"], ["", "1,1", "-1", "x", "1,,2", str(10**30)])},
    "find-lr": OUT
    | {
        "repeats": (["1", "2"], COUNTS),
        "iterations": (["3", "5"], ["2", *COUNTS]),
        "start-lr": (["1e-3"], POSITIVES),
        "end-lr": (["1"], ["1e-9", *POSITIVES]),
    },
    "verify-resume": {"kills": ([], COUNTS)},  # its processes are tried elsewhere
}


NET = """
from torch import nn

def Net(num_classes, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders of all kinds, few digits, no network, and nothing that takes long."""
    root = tmp_path_factory.mktemp("place")
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            folder = root / "good" / split / name
            folder.mkdir(parents=True)
            for shade in range(4):
                colour = (60 * number, 30 * shade, 0)
                Image.new("RGB", (32, 32), colour).save(folder / f"{shade}.png")
    shutil.copytree(root / "good", root / "torn")
    (root / "torn" / "train" / "cat" / "0.png").write_bytes(b"no image")
    (root / "empty").mkdir()
    (root / "file").touch()
    (root / "net.py").write_text(NET)
    (root / "dangling").symlink_to("nowhere")
    digits = load_digits()
    few = {
        name: getattr(digits, name)[:16]
        for name in ("train_images", "train_labels", "test_images", "test_labels")
    }
    few = dataclasses.replace(digits, **few)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("sys.path", [*sys.path])
        patch.setattr("ultimus_ignite.data.digits.load_digits", lambda: few)
        patch.setattr(FigureCanvasAgg, "print_png", lambda *arguments: None)
        patch.setattr("ultimus_ignite.handlers.CurveRenderer.render", lambda *arguments: None)
        patch.setattr(doctor, "OVERFIT_STEPS", 5)
        patch.setattr(socket, "getaddrinfo", _no_network)
        patch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back at the end
        yield root


def _no_network(*arguments, **options):
    raise OSError("no network")


def draw(chance):
    """A subcommand, its flags, and whether one of them is wrong on its own."""
    name = chance.choice([*OWN, "train", "train"])
    flags = {"data": "folder:good", "data-dir": "cache", "device": "cpu"}
    flags |= {"epochs": "3", "batch-size": "3"}
    flags |= {"seeds": "1"} if name == "repeat" else {}
    is_wrong = name == "verify-resume"
    drawn = chance.sample([*RECIPE.items(), *OWN[name].items()], chance.randint(0, 3))
    for flag, (right, wrong) in drawn + ([*OWN[name].items()] if is_wrong else []):
        takes_wrong = not right or chance.random() < 0.4
        flags[flag] = chance.choice(wrong if takes_wrong else right)
        is_wrong |= takes_wrong
    if chance.random() < 0.05:
        flags["no-such-flag"] = "1"
        is_wrong = True
    return name, [f"--{flag}={value}" for flag, value in flags.items()], is_wrong


@pytest.mark.filterwarnings("ignore:.* cannot be written:UserWarning")
def test_flags_and_folders_end_as_documented(place):
    endings = []
    for number in range(CASES):
        name, flags, is_wrong = draw(random.Random(number))
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.call(cli.choose, "ultimus", [name, *flags])
        case = f"case {number}: {name} {flags}: {code}, {err.getvalue()}"
        assert code in ((2,) if is_wrong else (0, 2, 4)), case
        lines = [line for line in err.getvalue().splitlines() if ": warning: " not in line]
        assert len(lines) == (code != 0), case
        assert all(line.startswith("ultimus: ") for line in lines), case
        endings.append(code)
        for made in ("out", "deep", "runs"):
            shutil.rmtree(place / made, ignore_errors=True)
    assert endings.count(0) > CASES / 5
    assert endings.count(2) > CASES / 5
