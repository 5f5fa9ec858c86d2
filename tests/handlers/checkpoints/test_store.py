"""What the store keeps, and what it does not take."""

import hashlib
import io
import math
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ultimus_ignite.handlers.checkpoints.store import CheckpointError, CheckpointStore

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
    lines = sidecar(path).read_text().splitlines()
    assert lines[0] == f"{digest}  ckpt-000000001.pt"
    assert all(line.startswith("#") for line in lines[1:])  # which sha256sum passes over
    command = ["sha256sum", "--check", "--strict", sidecar(path).name]
    assert subprocess.check_output(command, cwd=tmp_path, text=True).endswith(": OK\n")


def test_tensors_that_share_storage_share_it_again(tmp_path):
    weight = torch.ones(4)
    store = CheckpointStore(tmp_path)
    store.save({"tied": [weight, weight], "view": weight[1:3]}, iteration=1)
    loaded = store.load_newest()[1]
    loaded["tied"][0].fill_(2.0)
    assert loaded["tied"][1].tolist() == [2.0] * 4
    assert loaded["view"].tolist() == [2.0] * 2


DTYPES = [value for value in vars(torch).values() if isinstance(value, torch.dtype)]


@pytest.mark.parametrize("dtype", sorted(set(DTYPES), key=str), ids=str)
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


FLOATS = st.lists(st.floats(-9, 9, width=32), max_size=3)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.complex_numbers() | st.sampled_from([torch.float32, torch.device("cpu"), torch.Size([2])])
    | FLOATS.map(torch.tensor)
    | FLOATS.map(lambda x: torch.tensor(x, dtype=torch.complex64).conj())
    | st.dictionaries(st.integers(), st.integers(1, 9), max_size=3).map(Counter),
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
        assert repr(store.load_newest()[1]) == repr(state)


@pytest.mark.parametrize(
    ("value", "equivalent"),
    [
        ({3}, {3}),
        (np.float64(0.1), 0.1),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array(["a", "b"]), ["a", "b"]),
        (np.arange(6, dtype=">i4")[::-2], torch.tensor([5, 3, 1], dtype=torch.int32)),
        (np.array(2.5), torch.tensor(2.5, dtype=torch.float64)),
        (deque([1, 2]), [1, 2]),
        (defaultdict(list, {1: [2]}), {1: [2]}),
        ({np.int64(1): (np.float32(0.5),)}, {1: (0.5,)}),
        (torch.ones(1).expand(3), torch.ones(3)),
        (nn.Parameter(torch.ones(2)), torch.ones(2)),
        (nn.Buffer(torch.ones(2)).as_subclass(type("Sub", (torch.Tensor,), {})), torch.ones(2)),
        (np.array([2**32 - 1], dtype=np.uint32), torch.tensor([2**32 - 1])),
        (np.array([2**64 - 1], dtype=np.uint64), [2**64 - 1]),
        (torch.tensor([-math.inf, math.nan]), torch.tensor([-math.inf, math.nan])),
    ],
)
def test_numpy_and_collections_come_back_as_their_plain_equivalents(tmp_path, value, equivalent):
    store = CheckpointStore(tmp_path)
    store.save({"value": value}, iteration=1)
    loaded = store.load_newest()[1]["value"]
    assert type(loaded) is type(equivalent)
    assert repr(loaded) == repr(equivalent)


def test_what_holds_itself_comes_back(tmp_path):
    state = {"list": []}
    state["list"].append(state["list"])
    CheckpointStore(tmp_path).save(state, iteration=1)
    loaded = CheckpointStore(tmp_path).load_newest()[1]["list"]
    assert loaded[0] is loaded


def test_the_newest_and_the_protected_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    for iteration in range(1, 10):
        store.save(STATE, iteration=iteration, protect=[2, 4] if iteration < 8 else [4])
    kept = [path.name for path in store.paths()]
    assert kept == [f"ckpt-00000000{iteration}.pt" for iteration in (9, 8, 7, 4)]
    assert len(list(tmp_path.iterdir())) == 2 * len(kept)


def test_the_newest_is_the_one_written_last_also_of_a_run_that_went_back(tmp_path):
    store = CheckpointStore(tmp_path)
    for iteration in (800, 900, 100, 200):
        store.save({"iteration": iteration}, iteration=iteration)
    assert [int(path.stem[5:]) for path in store.paths()] == [200, 100]
    assert store.load_newest()[1] == {"iteration": 200}


def test_another_runs_checkpoints_are_neither_deleted_nor_replaced(tmp_path):
    first, second = CheckpointStore(tmp_path), CheckpointStore(tmp_path)
    first.run, second.run = "first", "second"
    for iteration in (1, 2, 3):
        first.save({"run": 1}, iteration=iteration)
    for iteration in (11, 12, 13):
        second.save({"run": 2}, iteration=iteration)
    assert [int(path.stem[5:]) for path in second.paths()] == [13, 12, 3, 2]
    with pytest.raises(CheckpointError, match="another run's"):
        second.save({"run": 2}, iteration=3)
    assert first.load(first.path(3)) == {"run": 1}


def test_a_folder_of_the_first_version_is_read_and_gone_on_with(tmp_path):
    store = CheckpointStore(tmp_path)
    for iteration in (7, 8):
        path = store.save({"iteration": iteration}, iteration=iteration)
        sidecar(path).write_text(sidecar(path).read_text().splitlines(keepends=True)[0])
    assert store.load_newest()[1] == {"iteration": 8}
    store.run = "new"
    store.save({"iteration": 3}, iteration=3)
    assert store.load_newest()[1] == {"iteration": 3}
    assert [int(path.stem[5:]) for path in store.paths()] == [3, 8]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_flipped_bit_beside_a_checkpoint_never_changes_the_order_in_silence(data):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        store = CheckpointStore(folder)
        for iteration in (5, 4):
            path = store.save({"iteration": iteration}, iteration=iteration)
        hurt = store.path(data.draw(st.sampled_from([4, 5])))
        content = bytearray(sidecar(hurt).read_bytes())
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
        sidecar(hurt).write_bytes(content)
        loaded = store.load_newest()[1]["iteration"]
        assert loaded == (5 if hurt == path else 4)
        assert len(warned) == 1
        assert hurt.name in str(warned[0].message)


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
from ultimus_ignite.handlers.checkpoints.store import CheckpointStore
CheckpointStore(sys.argv[1]).save({"value": 3}, iteration=1)
print(CheckpointStore(sys.argv[1]).load_newest()[1])
"""
    folder = tmp_path / "größe [*] 訓練" / "with spaces"
    warnings_as_errors = ["-W", "error", "-W", "ignore::DeprecationWarning"]  # of an older torch
    command = [sys.executable, *warnings_as_errors, "-c", script, folder]
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
    "bytes": b"1",
    "function": len,
    "frozen set": frozenset([1]),
    "objects": np.array([len]),
    "date": np.datetime64("2026-01-01"),
    "meta": torch.ones(2, device="meta"),
    "nested": torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged),
    "lazy": torch.nn.LazyLinear(2).weight,
    "attribute": with_attribute(),
}


@pytest.mark.parametrize("value", UNFIT.values(), ids=UNFIT)
def test_what_could_not_be_resumed_from_is_not_written(tmp_path, value):
    store = CheckpointStore(tmp_path)
    store.save(STATE, iteration=1)
    with pytest.raises(CheckpointError, match=r"ckpt-000000002.pt: not saved.*\['a'\]\[0\]\['b'\]"):
        store.save({"a": [{"b": value}]}, iteration=2)
    assert len(list(tmp_path.iterdir())) == 2
