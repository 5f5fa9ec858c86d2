from processes import call


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
    answer = call(
        "ultimus", "doctor", "--data", "folder:missing", "--out", tmp_path / "file", cwd=tmp_path
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
