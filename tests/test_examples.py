"""The examples run as they are, and the one that says it resumes does."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from processes import call

from ultimus_ignite.handlers import CheckpointStore

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, folder):
    return call("python", EXAMPLES / name, cwd=folder)


def test_the_block_as_a_layer(tmp_path):
    ended = run("block_as_a_layer.py", tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("(2, 10)")


@pytest.fixture(scope="module")
def own_script(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own_script")
    ended = run("own_script.py", folder)
    assert (ended.returncode, ended.stderr) == (0, "")
    return folder, ended.stdout


def test_own_script_learns_the_digits(own_script):
    folder, output = own_script
    accuracies = re.findall(r"Accuracy: (\d+\.\d+)%", output)
    assert len(accuracies) == 5
    assert float(accuracies[-1]) > 90
    made = sorted(path.name for path in (folder / "own_run").iterdir())
    assert made == ["checkpoints", "curves.png", "history.csv"]


def test_own_script_started_again_ends_as_if_it_had_never_stopped(own_script, tmp_path):
    folder, _ = own_script
    shutil.copytree(folder / "own_run", tmp_path / "own_run")
    newest, *_ = CheckpointStore(tmp_path / "own_run" / "checkpoints").paths()
    newest.unlink()
    newest.with_name(f"{newest.name}.sha256").unlink()
    ended = run("own_script.py", tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("EPOCH: 5")
    whole, resumed = (
        CheckpointStore(path / "own_run" / "checkpoints").load_newest()[1]["model"]
        for path in (folder, tmp_path)
    )
    assert repr([value.tolist() for value in whole.values()]) == repr(
        [value.tolist() for value in resumed.values()]
    )


def test_own_script_that_is_finished_says_so(own_script):
    ended = run("own_script.py", own_script[0])
    assert "holds a finished run: give more max_epochs" in ended.stderr


def test_own_model_learns_and_is_resumed(tmp_path):
    ended = run("own_model.py", tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(re.findall(r"^\d+ images of \d were taken for \d$", ended.stdout, re.MULTILINE)) == 5
    assert float(re.search(r"best accuracy (\S+)%", ended.stdout)[1]) > 80
    again = run("own_model.py", tmp_path)
    assert again.stdout.startswith("own_model_run is finished: 5 epochs, nothing left to do\nbest")


def test_the_notebook_shows_widget_curves_and_report(tmp_path):
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    client = NotebookClient(notebook, resources={"metadata": {"path": tmp_path}})
    client.execute()  # raises what a cell raises
    kinds = [
        [kind for output in cell.get("outputs", []) for kind in output.get("data", {})]
        for cell in notebook.cells
    ]
    assert sum("application/vnd.jupyter.widget-view+json" in each for each in kinds) == 2
    assert sum("image/png" in each for each in kinds) == 2
    assert (tmp_path / "report.html").exists()
    resumed = next(cell for cell in notebook.cells if "the machine is gone" in cell.source)
    assert resumed.outputs[-1].data["text/plain"] == "True"
