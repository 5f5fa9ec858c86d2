import json

import pytest
from processes import call
from scipy import stats

from ultimus_ignite.commands.repeat import parse_seeds, table
from ultimus_ignite.errors import UserError

FLAGS = ["--data", "digits", "--epochs", "2", "--batch-size", "256"]


def test_each_seed_is_the_run_that_train_makes_of_it_and_a_second_call_trains_nothing(tmp_path):
    flags = ["--seeds", "3,1", *FLAGS, "--out", tmp_path / "both"]
    first = call("ultimus", "repeat", *flags)
    assert (first.returncode, first.stderr) == (0, "")
    call("train-cifar", *FLAGS, "--seed", "3", "--out", tmp_path / "one")
    weights = [tmp_path / run / "model.safetensors" for run in ("one", "both/seed-3")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    status = json.loads((tmp_path / "one" / "status.json").read_text())
    assert f"     3  {100 * status['test_accuracy']:11.2f} %\n" in first.stdout

    refused = call("ultimus", "repeat", *flags)
    assert refused.returncode == 2
    assert "already holds a run" in refused.stderr
    again = call("ultimus", "repeat", *flags, "--resume")
    assert "EPOCH" not in again.stdout
    assert again.stdout.splitlines()[-4:] == first.stdout.splitlines()[-4:]


def test_a_seed_that_was_run_before_is_refused_before_the_first_is_trained(tmp_path):
    call("train-cifar", *FLAGS, "--out", tmp_path / "seed-2")
    answer = call("ultimus", "repeat", "--seeds", "1,2", *FLAGS, "--out", tmp_path)
    assert answer.returncode == 2
    assert not (tmp_path / "seed-1").exists()


def test_the_interval_is_scipys():
    values = [0.80, 0.83, 0.81, 0.86]
    low, high = stats.t.interval(0.95, 3, loc=82.5, scale=stats.sem([100 * v for v in values]))
    assert f"{low:.2f} to {high:.2f} %" in table(dict(enumerate(values)))


def test_one_seed_has_no_deviation():
    assert table({1: 0.5}).splitlines()[-1] == "mean 50.00 %"


@pytest.mark.parametrize("text", ["", "1,,2", "1,-2", "1.5", "1,1", "1,01", "one"])
def test_seeds_are_different_whole_numbers(text):
    with pytest.raises(UserError, match="whole numbers"):
        parse_seeds(text)


def test_a_seed_is_refused_as_in_any_recipe():
    with pytest.raises(UserError, match=r"seed must be below 2\*\*63"):
        parse_seeds(f"1,{2**63}")


def test_a_flag_that_seeds_replaces_is_refused(tmp_path):
    answer = call("ultimus", "repeat", *FLAGS, "--seed", 7, "--out", tmp_path / "out")
    assert answer.returncode == 2
    assert answer.stderr == "ultimus: --seed 7 has no effect: give --seeds\n"
