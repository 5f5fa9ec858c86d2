import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from processes import call

from ultimus_ignite.build import build
from ultimus_ignite.commands.doctor import disk_space
from ultimus_ignite.errors import UserError
from ultimus_ignite.modules import UltimusNet
from ultimus_ignite.recipe import Recipe


def test_all_is_well_and_nothing_is_left(tmp_path):
    answer = call("ultimus", "doctor", "--data", "digits", "--out", tmp_path / "a" / "b")
    assert (answer.returncode, answer.stderr) == (0, "")
    lines = answer.stdout.splitlines()
    assert len(lines) == 8
    assert all(line.startswith("ok   ") for line in lines)
    assert "72 iterations, rate 1.86e-05 to 0.0186 to 1.86e-08" in answer.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_is_said_and_the_other_checks_go_on(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    answer = call(
        "ultimus", "doctor", "--data", "folder:empty", "--out", tmp_path / "file", cwd=tmp_path
    )
    assert answer.returncode == 2
    lines = answer.stdout.splitlines()
    assert lines[1].startswith("FIX  output folder: ")
    assert lines[2].startswith("FIX  data and device: ")
    assert "2 of 3 checks failed" in answer.stderr


def test_a_device_that_cannot_train_is_noticed(tmp_path):
    answer = call("ultimus", "doctor", "--data", "digits", "--device", "meta", "--out", tmp_path)
    assert answer.returncode == 2
    assert "FIX" in answer.stdout
    assert "Traceback" not in answer.stderr


def test_a_folder_that_train_would_refuse_is_noticed(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    flags = ["--data", "folder:empty", "--out", "run"]
    without, resumed = (
        call("ultimus", "doctor", *flags, *more, cwd=tmp_path).stdout for more in ([], ["--resume"])
    )
    assert "FIX  output folder: run already holds a run" in without
    assert "ok   output folder: run can be written" in resumed


def test_a_rate_that_a_range_test_will_choose_is_no_error(tmp_path):
    flags = ["--data", "digits", "--max-lr", "auto", "--out", tmp_path / "a"]
    answer = call("ultimus", "doctor", *flags)
    assert answer.returncode == 0, answer.stdout
    assert "72 iterations, up to a rate that a range test will choose" in answer.stdout


def test_the_room_is_that_of_four_checkpoints(tmp_path, monkeypatch):
    model = UltimusNet()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "one.pt")
    four = 4 * (tmp_path / "one.pt").stat().st_size / 1e6
    parts = build(Recipe(data="digits", device="cpu"))
    enough = re.search(r"GB free, ([\d.]+) MB needed", disk_space(tmp_path, parts))
    assert float(enough[1]) == pytest.approx(four, rel=0.3)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0.5 * four * 1e6))
    with pytest.raises(UserError, match=r"^\d+ MB free, \d+ needed: free some$") as too_little:
        disk_space(tmp_path, parts)
    free, needed = map(int, re.findall(r"\d+", str(too_little.value)))
    assert [2 * free, needed] == pytest.approx([four, float(enough[1])], abs=1.5)
