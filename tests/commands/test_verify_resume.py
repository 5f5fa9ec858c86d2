import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import call

from ultimus_ignite.commands import verify_resume
from ultimus_ignite.commands.verify_resume import digest, leaves, report
from ultimus_ignite.errors import UserError
from ultimus_ignite.recipe import Recipe
from ultimus_ignite.training import train as training

BIN = Path(__file__).parents[2] / "bin"


def verify(kills, *flags):
    return subprocess.run(
        [sys.executable, BIN / "ultimus", "verify-resume", "--data", "digits", *flags,
         "--kills", str(kills)],
        capture_output=True, text=True, timeout=1500,
    )  # fmt: skip


def check(answer, kills):
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    assert answer.stdout.startswith("data: digits, 1437 training and 360 test images")
    assert answer.stdout.count("\nkilled after") == kills
    assert "newest: None" not in answer.stdout
    for name in ("model", "optimizer", "history"):
        a, b = re.search(rf"{name} +bit-identical, sha256 (\w+) = (\w+)", answer.stdout).groups()
        assert a == b


def test_eight_kills_of_eight_end_bit_identical():
    check(verify(8, "--batch-size", "128"), 8)


@pytest.mark.slow
def test_fifty_kills_of_fifty_end_bit_identical():
    check(verify(50, "--batch-size", "32", "--epochs", "20"), 50)


def train(path, **changes):
    recipe = Recipe(data="digits", epochs=1, device="cpu", **changes)
    training(recipe, out=path)
    return path


def test_a_difference_is_named(tmp_path, capsys):
    straight, other = train(tmp_path / "a"), train(tmp_path / "b", max_lr=0.01)
    with pytest.raises(UserError, match=r"NOT bit-identical: \.metadata\.max_lr = .*0\.01"):
        report(straight, other)


def test_leaves_tell_neighbouring_floats_apart():
    a = torch.ones(3)
    b = a.clone()
    b[1] = torch.nextafter(b[1], torch.tensor(2.0))
    assert list(leaves({"w": a})) != list(leaves({"w": b}))
    assert list(leaves({"w": a})) == list(leaves({"w": a.clone()}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64])
def test_digests_tell_what_leaves_tell(dtype):
    a = torch.rand(3, 4).mul(9).to(dtype)
    b = a.clone()
    b[2, 3] += 1
    assert digest({"w": [a, 1]}) == digest({"w": [a.t().contiguous().t(), 1]})
    for other in ({"w": [b, 1]}, {"w": [a, 2]}, {"v": [a, 1]}, {"w": [a.view(4, 3), 1]}, {"w": a}):
        assert digest({"w": [a, 1]}) != digest(other)


@pytest.mark.parametrize("kills", [0, -1, 10**30])
def test_a_number_of_kills_that_shows_nothing_is_refused(kills):
    answer = verify(kills)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert re.search("kills must be at (least 1|most 1,000,000,000), got", answer.stderr)
    assert answer.stderr.count("\n") == 1


class Ended:
    """A process that is over."""

    def __init__(self, exitcode):
        self.exitcode = exitcode

    def join(self):
        pass


@pytest.mark.parametrize("codes", [[-9], [0, -9], [2, 0]])
def test_a_run_that_fails_or_is_killed_shows_nothing(tmp_path, monkeypatch, codes):
    monkeypatch.setattr(verify_resume, "_start", lambda *run: [Ended(code) for code in codes])
    with pytest.raises(UserError, match=f"ended with exit code {sum(codes)}"):
        verify_resume._train_straight(Recipe(), tmp_path, len(codes))


def test_a_recipe_that_cannot_be_trained_is_refused_before_the_first_run():
    flags = ["--data", "digits", "--epochs", 1, "--batch-size", 9999]
    answer = call("ultimus", "verify-resume", *flags)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert re.fullmatch("ultimus: in 1 iteration .*\n", answer.stderr)
