import csv

from PIL import Image
from processes import call


def test_the_curve_is_the_schedule_of_the_run(tmp_path):
    flags = ["--data", "digits", "--epochs", "8"]
    answer = call("ultimus", "plot-schedule", *flags, "--out", tmp_path / "plan")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "iteration 1: 1.856635533445111e-05" in answer.stdout
    with (tmp_path / "plan" / "schedule.csv").open() as file:
        rows = list(csv.DictReader(file))
    planned = [row["lr"] for row in rows]
    assert {row["momentum"] for row in rows} == {"0.9"}  # Adam's beta1: the recipe cycles the rate
    call("train-cifar", *flags, "--out", tmp_path / "run")
    with (tmp_path / "run" / "history.csv").open() as file:
        used = [row["lr"] for row in csv.DictReader(file)]
    assert planned[::3] == used
    with Image.open(tmp_path / "plan" / "schedule.png") as picture:
        assert picture.size == (1080, 360)


def test_a_rate_that_is_not_known_is_refused(tmp_path):
    answer = call("ultimus", "plot-schedule", "--max-lr", "auto", "--out", tmp_path / "plan")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "find-lr" in answer.stderr
    assert not (tmp_path / "plan").exists()
