"""What the store keeps, and what it does not take."""

import hashlib
import io
import math
import os
import subprocess
import sys
import tempfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ultimus_ignite.handlers.checkpoint_store import CheckpointError, CheckpointStore

STATE = {"model": OrderedDict(weight=torch.arange(24.0).view(4, 6)), "iteration": 1}


def packed(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def sidecar(path):
    return path.with_name(f"{path.name}.sha256")


# What is kept


def trained(optimizer_class):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = optimizer_class(model.parameters())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD])
def test_a_model_and_its_optimizer_come_back_bit_for_bit(tmp_path, optimizer_class):
    state = trained(optimizer_class) | {"history": [math.nan, math.inf, 0.1], "best": None}
    store = CheckpointStore(tmp_path)
    path = store.save(state, iteration=2352)
    assert path == tmp_path / "ckpt-000002352.pt"
    assert packed(store.load(path)) == packed(state)
    assert path.read_bytes() == packed(state)


def test_the_digest_is_the_one_of_sha256sum(tmp_path):
    CheckpointStore(tmp_path).save({"replaced": 1}, iteration=1)
    path = CheckpointStore(tmp_path).save(STATE, iteration=1)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sidecar(path).read_text() == f"{digest}  ckpt-000000001.pt\n"


def test_tensors_that_share_storage_share_it_again(tmp_path):
    weight = torch.ones(4)
    store = CheckpointStore(tmp_path)
    store.save({"tied": [weight, weight], "view": weight[1:3]}, iteration=1)
    loaded = store.load_newest()[1]
    loaded["tied"][0].fill_(2.0)
    assert loaded["tied"][1].tolist() == [2.0] * 4
    assert loaded["view"].tolist() == [2.0] * 2


DTYPES = [value for value in vars(torch).values() if isinstance(value, torch.dtype)]


@pytest.mark.parametrize("dtype", set(DTYPES), ids=str)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of types to come, and to go
def test_a_tensor_of_any_type_comes_back_or_is_refused_at_save(tmp_path, dtype):
    store = CheckpointStore(tmp_path)
    tensor = torch.empty(0, dtype=dtype)
    try:
        store.save({"tensor": tensor}, iteration=1)
    except CheckpointError:
        assert dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)
    else:
        assert store.load_newest()[1]["tensor"].dtype == dtype


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.lists(st.floats(-9, 9, width=32), max_size=3).map(torch.tensor),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=3), PLAIN, max_size=3))
def test_any_plain_state_comes_back(state):
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(folder)
        store.save(state, iteration=0)
        assert packed(store.load_newest()[1]) == packed(state)


def test_the_newest_and_the_protected_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    for iteration in range(1, 10):
        store.save(STATE, iteration=iteration, protect=[2, 4] if iteration < 8 else [4])
    kept = [path.name for path in store.paths()]
    assert kept == [f"ckpt-00000000{iteration}.pt" for iteration in (9, 8, 7, 4)]
    assert len(list(tmp_path.iterdir())) == 2 * len(kept)


def test_a_run_that_went_back_keeps_what_it_saves_and_what_is_ahead(tmp_path):
    store = CheckpointStore(tmp_path)
    for iteration in (800, 900, 100, 200, 300):
        store.save(STATE, iteration=iteration)
    assert [int(path.stem[5:]) for path in store.paths()] == [900, 800, 300, 200]


def test_many_saves_leave_no_litter(tmp_path):
    store = CheckpointStore(tmp_path)
    for iteration in range(40):
        store.save(STATE, iteration=iteration)
    assert len(list(tmp_path.iterdir())) == 4


def test_iterations_order_by_number_whatever_the_clock_said(tmp_path):
    store = CheckpointStore(tmp_path, keep=4)
    for iteration in (5, 999_999_999, 1_000_000_000, 1_000_000_001):
        path = store.save({"iteration": iteration}, iteration=iteration)
        os.utime(path, (0, 2e9 - iteration))
    assert [int(path.stem[5:]) for path in store.paths()][-1] == 5
    assert store.load_newest()[1]["iteration"] == 1_000_000_001


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644)])
def test_the_umask_is_honoured(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        CheckpointStore(tmp_path / "new").save(STATE, iteration=1)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()} == {mode}


def test_odd_paths_in_a_plain_locale(tmp_path):
    script = """
import sys
from ultimus_ignite.handlers.checkpoint_store import CheckpointStore
CheckpointStore(sys.argv[1]).save({"value": 3}, iteration=1)
print(CheckpointStore(sys.argv[1]).load_newest()[1])
"""
    folder = tmp_path / "größe [*] 訓練" / "with spaces"
    command = [sys.executable, "-W", "error", "-c", script, folder]
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert subprocess.check_output(command, env=environment) == b"{'value': 3}\n"
    assert CheckpointStore(folder).load_newest()[1] == {"value": 3}


def test_what_a_killed_run_left_is_swept(tmp_path):
    litter = ["ckpt-000000001.pt.1.tmp", "ckpt-000000007.pt.sha256"]
    for name in litter:
        (tmp_path / name).write_text("left behind")
    assert CheckpointStore(tmp_path).load_newest() is None
    CheckpointStore(tmp_path).save(STATE, iteration=2)
    assert not any((tmp_path / name).exists() for name in litter)


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="at least 2, got 1"):
        CheckpointStore(tmp_path, keep=1)
    with pytest.raises(ValueError, match="negative, got -1"):
        CheckpointStore(tmp_path).save(STATE, iteration=-1)


def test_the_newest_valid_checkpoint_is_loaded_and_the_bad_ones_named(tmp_path):
    store = CheckpointStore(tmp_path, keep=4)
    for iteration in (1, 2, 3, 4):
        store.save({"iteration": iteration}, iteration=iteration)
    for bad in (3, 4):
        (tmp_path / f"ckpt-00000000{bad}.pt").write_bytes(b"bad")
    with pytest.warns(UserWarning, match="refused") as warned:
        path, state = store.load_newest()
    assert (path.name, state) == ("ckpt-000000002.pt", {"iteration": 2})
    named = [str(warning.message).split(":")[0] for warning in warned]
    assert named == [str(tmp_path / f"ckpt-00000000{bad}.pt") for bad in (4, 3)]


def test_never_from_scratch_where_there_is_a_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    assert store.load_newest() is None
    path = store.save(STATE, iteration=1)
    path.write_bytes(b"bad")
    with pytest.warns(UserWarning, match=path.name), pytest.raises(CheckpointError, match="none"):
        store.load_newest()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        CheckpointStore(tmp_path / "file").load_newest()


# What is refused at save


def with_attribute():
    tensor = torch.ones(2)
    tensor.note = "kept nowhere"
    return tensor


UNFIT = {
    "nan": torch.tensor([1.0, math.nan]),
    "infinity": torch.tensor([1.0, -math.inf]).bfloat16(),
    "numpy scalar": np.float64(1.0),
    "numpy array": np.ones(2),
    "set": {1},
    "bytes": b"1",
    "function": len,
    "size": torch.ones(2).shape,
    "expanded": torch.ones(1).expand(9),
    "sparse": torch.eye(2).to_sparse(),
    "meta": torch.ones(2, device="meta"),
    "complex": torch.ones(2, dtype=torch.complex64),
    "buffer": torch.nn.Buffer(torch.ones(2)).as_subclass(type("Sub", (torch.Tensor,), {})),
    "attribute": with_attribute(),
    "key": {np.int64(1): 1},
}


@pytest.mark.parametrize("value", UNFIT.values(), ids=UNFIT)
def test_what_could_not_be_resumed_from_is_not_written(tmp_path, value):
    store = CheckpointStore(tmp_path)
    store.save(STATE, iteration=1)
    with pytest.raises(CheckpointError, match=r"ckpt-000000002.pt: not saved.*\['a'\]\[0\]\['b'\]"):
        store.save({"a": [{"b": value}]}, iteration=2)
    assert len(list(tmp_path.iterdir())) == 2
