"""Every command, script and link of README works.

`pip install` and `pytest` are run by `.ci/run`, in an empty environment.
"""

import re
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import torch
from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
from ignite.metrics import Accuracy, Loss
from PIL import Image
from processes import call
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ultimus_ignite import handlers
from ultimus_ignite.cli import SUBCOMMANDS
from ultimus_ignite.errors import ExitCode
from ultimus_ignite.handlers.support.history_csv import read_csv

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
SCRIPTS = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [
    command
    for language, text in BLOCKS
    if language == "bash"
    for command in re.split(r" && |\n", text)
    if command and not re.match(r"pip install|pytest |python3 -m venv|\. \.venv", command)
]
TABLED = re.findall(r"^\| `((?:train-cifar|ultimus) ?[^`]*)` \|", README, flags=re.MULTILINE)
SMALL = {  # what makes each take seconds
    "train-cifar": ["--epochs", "1"],
    "ultimus summary": [],
    "ultimus evaluate RUN": [],
    "ultimus predict RUN DIR": [],
    "ultimus plot RUN": [],
    "ultimus export RUN": ["--format", "torch-export"],
    "ultimus report RUN": [],
    "ultimus plot-schedule": [],
    "ultimus find-lr": ["--iterations", "5"],
    "ultimus doctor": [],
    "ultimus repeat --seeds 1,2,3": ["--epochs", "1"],
    "ultimus runs DIR": [],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run."""
    place = tmp_path_factory.mktemp("readme")
    run(place, "train-cifar --data digits --epochs 1 --out RUN")
    return place / "RUN"


@pytest.fixture
def folder(tmp_path):
    """A folder with images in DIR."""
    for split in ("train", "test"):
        for number, label in enumerate(("cat", "dog")):
            place = tmp_path / "DIR" / split / label
            place.mkdir(parents=True)
            for shade in range(4):
                Image.new("RGB", (32, 32), (60 * number, 9 * shade, 0)).save(place / f"{shade}.png")
    return tmp_path


def run(folder, command, *extra):
    name, *arguments = shlex.split(command.removeprefix("bin/"))
    answer = call(name, *arguments, *extra, cwd=folder)
    assert answer.returncode == 0, answer.stderr
    return answer


def test_each_kind_of_block_is_found():
    assert len(SCRIPTS) == 4
    assert len(COMMANDS) == 3
    assert len(TABLED) == len(SUBCOMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_a_block(folder, command):
    data = [] if "--data" in command else ["--data", "digits"]
    run(folder, command, "--data-dir", "cache", "--epochs", 2, *data)


@pytest.mark.parametrize("command", SMALL)
def test_a_command_of_the_table(folder, finished, command):
    shutil.copytree(finished, folder / "RUN")
    has_data = re.search(" (RUN|DIR)$", command)
    run(folder, command, *SMALL[command], *([] if has_data else ["--data", "digits"]))


def test_the_other_command_of_the_table_is_run_by_its_own_test():
    assert [*{*TABLED} - {*SMALL}] == ["ultimus verify-resume"]


def test_the_subcommands_are_all_in_the_table():
    assert {command.split()[1] for command in TABLED[1:]} == SUBCOMMANDS.keys() - {"train"}


def test_the_exit_codes_are_those_of_the_command():
    assert ExitCode.table() in " ".join(README.split())


def users_script():
    """The names that stand in a script of README's reader, by now."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    dataset = TensorDataset(torch.randn(80, 4), torch.arange(80) % 2)
    loader = DataLoader(dataset, batch_size=64)
    loss_fn = nn.CrossEntropyLoss()
    metrics = {"loss": Loss(loss_fn), "accuracy": Accuracy()}
    evaluator = create_supervised_evaluator(model, metrics=metrics)
    trainer = create_supervised_trainer(model, optimizer, loss_fn)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(loader))
    return {**locals(), "DataLoader": DataLoader}


def test_the_call_trains_on_a_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    names = {"net": nn.Sequential(nn.Flatten(), nn.Linear(3 * 96 * 96, 2))}
    exec(SCRIPTS[0], names)
    assert len(names["run"].history.rows) == 24
    assert Path("runs/mine/model.safetensors").exists()


@pytest.mark.parametrize("event", [Events.ITERATION_STARTED, Events.EPOCH_COMPLETED])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_script_resumes_exactly(tmp_path, monkeypatch, number, event):
    monkeypatch.chdir(tmp_path)
    stopped, resumed, unbroken = (users_script() for _ in range(3))
    stopped["trainer"].add_event_handler(event(once=3), lambda: signal.raise_signal(number))
    exec(SCRIPTS[1], stopped)
    assert stopped["stop"].received == number
    assert stopped["trainer"].state.iteration < 10
    exec(SCRIPTS[1], resumed)
    assert resumed["trainer"].state.iteration == 10
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    exec(SCRIPTS[1], unbroken)
    assert torch.equal(resumed["model"].weight, unbroken["model"].weight)
    rows, whole = (
        [{**row, "seconds": 0} for row in read_csv(tmp_path / place / "history.csv")]
        for place in ("", "other")
    )
    assert len(rows) == 5
    assert rows == whole


def test_the_other_handlers_attach_in_any_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = []
    for order in (lambda lines: lines, reversed):
        names = users_script() | {"handlers": handlers}
        names["history"] = handlers.History(names["optimizer"])
        names["history"].attach(names["trainer"], names["evaluator"])
        exec("\n".join(order(SCRIPTS[2].splitlines())), names)
        names["trainer"].run(names["loader"], max_epochs=2)
        weights.append(names["model"].weight)
    assert Path("curves.png").exists()
    assert torch.equal(*weights)


def test_the_block_is_a_layer():
    names = {"tokens": torch.zeros(2, 5, 48), "norm": nn.LayerNorm(48)}
    exec(SCRIPTS[3], names)
    assert names["tokens"].shape == (2, 5, 48)


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", README)
    local = [a or b for a, b in links if not (a or b).startswith("http")]
    assert len(local) > 5
    for link in local:
        assert (ROOT / link.split("#")[0]).exists(), link
