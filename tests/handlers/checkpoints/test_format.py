"""What a state is as bytes, and what the store makes of bytes that are damaged or malicious."""

import contextlib
import copyreg
import functools
import hashlib
import io
import operator
import os
import pickle
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import timeit
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ultimus_ignite.handlers.checkpoints.format import decode, encode
from ultimus_ignite.handlers.checkpoints.store import CheckpointError, CheckpointStore

STATE = {"model": OrderedDict(weight=torch.arange(24.0).view(4, 6)), "iteration": 1}


def packed(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def plant(directory, data, iteration=1):
    """Put bytes where a checkpoint belongs, with the digest that fits them."""
    path = directory / f"ckpt-{iteration:09d}.pt"
    directory.mkdir(exist_ok=True)
    path.write_bytes(data)
    sidecar(path).write_text(f"{hashlib.sha256(data).hexdigest()}  {path.name}\n")
    return path


def sidecar(path):
    return path.with_name(f"{path.name}.sha256")


def refused(path, match=None):
    with pytest.raises(CheckpointError, match=match) as caught:
        CheckpointStore(path.parent).load(path)
    assert path.name in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert "weights_only" not in str(caught.value)
    return True


def harmless(path, original):
    """True where the file is refused, or loads as what was saved."""
    try:
        return packed(CheckpointStore(path.parent).load(path)) == original
    except CheckpointError:
        return True


# States


HASHABLE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3)
    | st.complex_numbers(allow_nan=False) | st.sampled_from([torch.int8, torch.device("cpu")]),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_is_written_is_read_whatever_stands_in_it_more_than_once(data):
    pool = st.sampled_from(data.draw(st.lists(HASHABLE, min_size=1, max_size=4)))
    inner = st.recursive(
        pool | st.tuples(pool, pool) | st.sets(pool, max_size=3),
        lambda value: st.lists(value, max_size=3) | st.dictionaries(pool, value, max_size=3),
        max_leaves=8,
    )
    state = data.draw(st.dictionaries(pool, inner | st.tuples(inner, inner), max_size=4))
    written = encode(state)
    assert decode(written) == state
    assert encode(decode(written)) == written
    assert decode(packed(state)) == state  # version 0.1.0 wrote tuples that stand in it twice


@pytest.mark.parametrize(
    "value", ["cpu", "a b", ("a b",), 1j, torch.Size([2]), torch.device("cpu")], ids=repr
)
def test_equal_states_have_equal_bytes(value):
    equal = pickle.loads(pickle.dumps(value))
    assert equal is not value
    state = {"one": value, "weight": torch.ones(1)}  # torch itself writes "cpu"
    assert encode(state | {"two": equal}) == encode(state | {"two": value})


def test_sets_have_the_same_bytes_in_every_process():
    script = """
from ultimus_ignite.handlers.checkpoints.format import decode, encode
data = encode({"names": {"ab", "cd", "ef", ("gh", 1), None, 2}})
assert type(decode(data)["names"]) is set
print(data.hex())
"""
    command = [sys.executable, "-c", script]
    seeds = [os.environ | {"PYTHONHASHSEED": str(seed)} for seed in range(2)]
    assert len({subprocess.check_output(command, env=seed) for seed in seeds}) == 1


@pytest.mark.parametrize("value", [2**2039, -(2**9999), torch.uint16], ids=["+", "-", "dtype"])
def test_a_value_that_torch_does_not_read_is_refused_by_its_key(value):
    with pytest.raises(ValueError, match=r"state\['a'\]\[0\]\['b'\]: no checkpoint"):
        encode({"a": [{"b": value}]})
    with pytest.raises(ValueError, match="a key of state: no checkpoint"):
        encode({value: 1})
    longest = {"a": [2**2039 - 1, 1 - 2**2039]}
    assert decode(encode(longest)) == longest


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_an_expanded_part_of_a_sparse_tensor_comes_back(layout):
    ones, zero, rows = torch.ones(1).expand(3), torch.tensor([0]).expand(3), torch.arange(4)
    state = {
        "coo": lambda: torch.sparse_coo_tensor(torch.stack([rows[:3], zero]), ones, (3, 3)),
        "csr": lambda: torch.sparse_csr_tensor(rows, zero, ones, (3, 3)),
        "csc": lambda: torch.sparse_csc_tensor(rows, zero, ones, (3, 3)),
    }[layout]()
    loaded = decode(encode({"sparse": state}))["sparse"]
    assert loaded.layout == state.layout
    assert loaded.to_dense().equal(state.to_dense())


# Damage


@pytest.fixture(scope="module")
def original():
    return packed(STATE)


def test_truncated(tmp_path, original):
    path = plant(tmp_path, original)
    for length in range(0, len(original), 37):
        path.write_bytes(original[:length])
        assert refused(path, "sha256")
        assert refused(plant(tmp_path / "resigned", original[:length]))
    path.write_bytes(original)
    digest = sidecar(path).read_bytes()
    for length in range(64):
        sidecar(path).write_bytes(digest[:length])
        assert refused(path)


def flips(data, count):
    """The data with one random bit wrong, a different one each time."""
    for bit in random.Random(0).sample(range(8 * len(data)), count):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bit, damaged


def test_a_flipped_bit_in_the_file(tmp_path, original):
    path = plant(tmp_path, original)
    with path.open("r+b", buffering=0) as file:
        for _, damaged in flips(original, 3000):
            file.seek(0)
            file.write(damaged)
            assert refused(path, "sha256")


def test_a_flipped_bit_that_the_digest_agrees_with(tmp_path, original):
    for bit, damaged in flips(original, 400):
        assert harmless(plant(tmp_path, damaged), original), bit


def test_a_flipped_bit_in_the_digest(tmp_path, original):
    path = plant(tmp_path, original)
    line = sidecar(path).read_bytes()
    for bit, damaged in flips(line, 8 * len(line)):
        sidecar(path).write_bytes(damaged)
        assert refused(path) if bit < 8 * 64 else harmless(path, original)


@settings(max_examples=500, deadline=None)
@given(data=st.data(), resigned=st.booleans())
def test_fuzzed(original, data, resigned):
    position = st.integers(0, len(original))
    damaged = original
    for _ in range(data.draw(st.integers(1, 4))):
        start, end, insert = data.draw(st.tuples(position, position, st.binary(max_size=30)))
        damaged = damaged[:start] + insert + damaged[data.draw(st.sampled_from([start, end])) :]
    with tempfile.TemporaryDirectory() as folder:
        path = plant(Path(folder), damaged if resigned else original)
        path.write_bytes(damaged)
        assert harmless(path, original)


@pytest.fixture
def impatient():
    def stop(*_):
        pytest.fail("waited for a writer")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("victim", [lambda path: path, sidecar], ids=["file", "digest"])
def test_what_is_no_regular_file(tmp_path, original, victim):
    path = victim(plant(tmp_path, original))
    path.rename(tmp_path / "moved")
    assert refused(tmp_path / "ckpt-000000001.pt", "No such file")
    for make in (os.mkfifo, Path.mkdir, lambda path: path.symlink_to(tmp_path / "moved")):
        make(path)
        assert refused(tmp_path / "ckpt-000000001.pt", "not a regular file")
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def archive(pickled, records=(), *, method=zipfile.ZIP_STORED, name="archive/data.pkl"):
    """Put a pickle into a file as torch.save writes them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for entry, content in [(name, pickled), ("archive/version", b"3\n"), *records]:
            file.writestr(entry, content)
    return with_end(buffer.getvalue())


def with_end(data):
    """Give an archive the end that torch writes, with room for 64 bits."""
    count, size, start = struct.unpack("<10xH2I2x", data[-22:])
    end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    return data[:-22] + end + struct.pack("<4sIQI", b"PK\6\7", 0, len(data) - 22, 1) + data[-22:]


def saved(state, **options):
    buffer = io.BytesIO()
    torch.save(state, buffer, **options)
    return buffer.getvalue()


def saved_by_path(state):
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / "foreign.pt")
        return (Path(folder) / "foreign.pt").read_bytes()


FOREIGN = {
    "empty": b"",
    "random": random.Random(1).randbytes(5000),
    "text": b"<html>404</html>",
    "pickle": pickle.dumps(STATE["iteration"]),
    "legacy torch": saved(STATE, _use_new_zipfile_serialization=False),
    "torch, by path": saved_by_path(STATE),
    "torch, a tensor": saved(torch.ones(3)),
    "torch, a list": saved([1, 2]),
    "torch, protocol 4": saved(STATE, pickle_protocol=4),
    "zip": archive(b"text", name="readme.txt"),
    "two in one": archive(b"\x80\2}K\1K\1s.") + archive(b"\x80\2}K\2K\2s."),
    "a function in an attribute": archive(
        b"\x80\2}K\1ccollections\nOrderedDict\n)R}K\1ccollections\nOrderedDict\nsbs."
    ),
    "empty zip": b"PK\5\6" + bytes(18),
    "TorchScript": archive(b"\x80\2}.", [("archive/constants.pkl", b"\x80\2).")]),
    "deflated": archive(
        b"\x80\2}.", [("archive/1", random.Random(2).randbytes(9999))], method=zipfile.ZIP_DEFLATED
    ),
}


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN)
def test_foreign_files(tmp_path, data):
    assert refused(plant(tmp_path, data))


# Malicious pickles


class Call:
    """Unpickles as a call."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


SYSTEM = b"cposix\nsystem\n"
EXTENSION = 240  # a code that copyreg has free


def text(string):
    return b"X" + struct.pack("<I", len(string.encode())) + string.encode()


def malicious(canary):
    """Pickles that make the file ``canary``: what a checkpoint from a stranger might hold."""
    python, shell = f"open({canary!r}, 'w').close()", f"touch {canary}"
    touch, argument = ["touch", canary], text(shell)
    mapped = SYSTEM + b"](" + argument + b"e"  # the arguments of map(system, [shell])
    instance = b"\x80\2ccollections\nOrderedDict\n)R}"
    by_opcode = {
        "GLOBAL": b"\x80\2" + SYSTEM + argument + b"\x85R.",
        "GLOBAL of Python 2": b"\x80\2c__builtin__\neval\n" + text(python) + b"\x85R.",
        "GLOBAL, memoised": b"\x80\2" + SYSTEM + b"q\0000h\0" + argument + b"\x85R.",
        "STACK_GLOBAL": b"\x80\4" + text("posix") + text("system") + b"\x93" + argument + b"\x85R.",
        "INST": b"(" + argument + b"iposix\nsystem\n.",
        "OBJ": b"(" + SYSTEM + argument + b"o.",
        "NEWOBJ": b"cbuiltins\nlist\ncbuiltins\nmap\n" + mapped + b"\x86\x81\x85R.",
        "NEWOBJ_EX": b"cbuiltins\nlist\ncbuiltins\nmap\n" + mapped + b"\x86}\x92\x85R.",
        "BUILD": instance + text("__setstate__") + SYSTEM + b"sb" + argument + b"b.",
        "APPEND": instance + text("append") + SYSTEM + b"sb" + argument + b"a.",
        "EXT1": b"\x82" + bytes([EXTENSION]) + argument + b"\x85R.",
    }
    by_call = {
        "os.system": Call(os.system, shell),
        "os.mkdir": Call(os.mkdir, canary),
        "eval": Call(eval, python),
        "exec": Call(exec, python),
        "open": Call(open, canary, "w"),
        "subprocess.call": Call(subprocess.call, touch),
        "subprocess.Popen": Call(operator.methodcaller("wait"), Call(subprocess.Popen, touch)),
        "__import__": Call(operator.methodcaller("system", shell), Call(__import__, "os")),
        "functools.partial": Call(functools.partial(os.system, shell)),
        "timeit": Call(timeit.repeat, python, "pass", timeit.default_timer, 1, 1),
        "shutil.copy": Call(shutil.copy, __file__, canary),
        "pathlib": Call(Path.touch, Path(canary)),
        "torch's rebuild": Call(
            torch._tensor._rebuild_from_type_v2, os.system, int, (shell,), None
        ),
        "nested": {"model": [({"weight": Call(os.system, shell)},)]},
        "as a key": {Call(os.system, shell): 1},
    }
    for protocol in (0, 1, 3, 4, 5):
        by_opcode[f"protocol {protocol}"] = pickle.dumps(by_call["os.system"], protocol)
    return by_opcode | {name: pickle.dumps(call, 2) for name, call in by_call.items()}


@pytest.fixture
def extension():
    copyreg.add_extension("posix", "system", EXTENSION)
    yield
    copyreg.remove_extension("posix", "system", EXTENSION)


@pytest.mark.usefixtures("extension")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("name", malicious(""))
def test_a_malicious_pickle_is_never_run(tmp_path, name):
    canary = tmp_path / "canary"
    pickled = malicious(str(canary))[name]
    for data in (archive(pickled), pickled):
        assert refused(plant(tmp_path, data))
        assert not canary.exists()
    with contextlib.suppress(Exception):
        pickle.loads(pickled)
    assert canary.exists(), "this pickle harms nobody: the test shows nothing"


# Bombs


def number(value):
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(*values):
    return b"(" + b"".join(map(number, values)) + b"t"


def called(name, *arguments):
    return b"c" + name.replace(" ", "\n").encode() + b"\n(" + b"".join(arguments) + b"tR"


def view(elements, size, stride, kind, key):
    """The pickle of a view of the record ``key`` of so many elements."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(str(key))
    claim = text("cpu") + number(elements) + b"tQ"
    return storage + claim + number(0) + numbers(*size) + numbers(*stride)


def tensor(elements, size, stride, *, kind="Float", key=0, quantizer=b""):
    function = f"torch._utils _rebuild_{'qtensor' if quantizer else 'tensor_v2'}"
    hooks = called("collections OrderedDict")
    return called(function, view(elements, size, stride, kind, key), quantizer, b"\x89", hooks)


def sparse(indices, values, size):
    layout = called("torch.serialization _get_layout", text("torch.sparse_coo"))
    parts = b"(" + indices + values + numbers(size) + b"\x89t"
    return called("torch._utils _rebuild_sparse_tensor", layout, parts)


def deflated(megabytes):
    buffer = io.BytesIO()
    file = zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED)
    with file, file.open("archive/data.pkl", "w") as entry:
        for _ in range(megabytes):
            entry.write(bytes(2**20))
    return with_end(buffer.getvalue())


def overlapping(count):
    """Tensors of a megabyte, each of which is the end of the one before it."""
    inner, entries, tensors = bytes(2**20), [], b""
    for key in range(count):
        entry = zipfile.ZipInfo(f"archive/data/{key}")
        entry.CRC, entry.file_size, entry.compress_size = zlib.crc32(inner), len(inner), len(inner)
        entries.append(entry)
        tensors += tensor(len(inner), [len(inner)], [1], kind="Byte", key=key)
        inner = entry.FileHeader() + inner
    pickled = b"\x80\2}" + text("a") + b"](" + tensors + b"es."
    buffer = io.BytesIO(archive(pickled, [("archive/data/all", inner)]))
    with zipfile.ZipFile(buffer, "a") as file:
        outermost = file.getinfo("archive/data/all")
        offset = outermost.header_offset + len(outermost.FileHeader())
        for entry in reversed(entries):
            entry.header_offset = offset
            offset += len(entry.FileHeader())
            file.filelist.append(entry)
        file.writestr("archive/byteorder", b"little")
    return with_end(buffer.getvalue())


def bombs():
    records = [(f"archive/data/{key}", bytes(400)) for key in range(3)]

    def holding(*values):
        pickled = b"\x80\2}" + text("a") + b"](" + b"".join(values) + b"es."
        return archive(pickled, [*records, ("archive/byteorder", b"little")])

    yield "sound", holding(tensor(100, [100], [1]))
    yield "deflated", deflated(300)
    yield "overlapping", overlapping(300)
    array = called("builtins bytearray", number(6 * 10**8))
    yield "bytearray", holding(array)
    yield "in the shade", archive(b"\x80\2}.", [("archive/DATA.PKL", b"\x80\2" + array + b".")])
    yield "torch.Tensor", holding(called("torch Tensor", number(10**8)))
    yield "storage", holding(called("torch.storage UntypedStorage", number(6 * 10**8)))
    yield "more elements than bytes", holding(tensor(10**9, [10**9], [1]))
    yield "longer than its storage", holding(tensor(100, [10**9], [1]))
    yield "expanded", holding(tensor(100, [10**9], [0]))
    yield "expanded to an exbibyte", holding(tensor(100, [2**58], [0]))
    yield "another claim", holding(tensor(100, [1], [1]), tensor(10**9, [10**9], [0]))
    yield (
        "set anew",
        holding(tensor(100, [1], [1]), b"(", view(100, [10**9], [0], "Float", 0), b"tb"),
    )

    many = tensor(50, [10**8], [0], kind="Long", key=1)
    yield "sparse", holding(sparse(tensor(50, [1, 10**8], [0, 0], kind="Long"), many, 5))
    scales = tensor(50, [10**8], [0], kind="Double", key=2)
    quantizer = b"(ctorch\nper_channel_affine\n" + scales + many + number(0) + b"t"
    yield "scales", holding(tensor(400, [10**8], [0], kind="QUInt8", quantizer=quantizer))
    yield "size", holding(called("torch Size", tensor(100, [10**7], [0], kind="Int")))
    indices = tensor(10**5, [1, 10**5], [1, 1], kind="Int")
    copies = sparse(indices, tensor(10**5, [10**5], [1], kind="Char", key=1), 5) * 3000
    records[:2] = [("archive/data/0", bytes(4 * 10**5)), ("archive/data/1", bytes(10**5))]
    yield "copied indices", holding(copies)
    items = b"]q\1(" + b"".join(b"M" + struct.pack("<H", item) for item in range(17000)) + b"e"
    yield "many sets", holding(items, called("__builtin__ set", b"h\1") * 2000)

    tuples = ()
    for _ in range(60):
        tuples = (tuples, tuples)
    yield "years of hashing", archive(b"\x80\2}" + pickle.dumps(tuples, 2)[2:-1] + b"K\1s.")
    yield "deep hashing", archive(b"\x80\2})" + b"\x85" * 10**6 + b"K\1s.")
    name = text("n" * 10**6) + b"q\1"
    yield "long names", archive(b"\x80\2}" + name + b"}h\1" * 3000 + b"N" + b"s" * 3001 + b".")


def test_a_file_larger_than_memory_is_not_read(tmp_path):
    path = plant(tmp_path, b"")
    os.truncate(path, 2**43)
    assert refused(path, "at most are read")
    plant(tmp_path, saved(STATE))
    sidecar(path).write_bytes(sidecar(path).read_bytes() + bytes(4096))
    assert refused(path, "at most are read")


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_bombs_are_refused_within_the_memory_of_a_sound_load(tmp_path):
    script = """
import sys
from pathlib import Path
from ultimus_ignite.handlers.checkpoints.store import CheckpointError, CheckpointStore

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024

start = peak()
for folder in sys.argv[1:]:
    try:
        CheckpointStore(folder).load(Path(folder, "ckpt-000000001.pt"))
        print("loaded", peak() - start, Path(folder).name)
    except CheckpointError:
        print("refused", peak() - start, Path(folder).name)
"""
    folders = [plant(tmp_path / name, data).parent for name, data in bombs()]
    CheckpointStore(tmp_path / "large").save({"weight": torch.ones(25 * 2**20)}, iteration=1)
    folders.append(tmp_path / "large")
    command = [sys.executable, "-c", script, *folders]
    printed = subprocess.check_output(command, text=True, timeout=600)  # some would take for ever
    lines = [line.split(" ", 2) for line in printed.splitlines()]
    outcomes = {name: (outcome, int(grown)) for outcome, grown, name in lines}
    assert len(outcomes) == len(folders)
    loaded = {name for name, (outcome, _) in outcomes.items() if outcome == "loaded"}
    assert loaded == {"sound", "long names", "large"}
    assert max(grown for name, (_, grown) in outcomes.items() if name != "large") < 200
    assert outcomes["large"][1] < 3 * 100  # the file has 100 MiB


def test_a_state_that_names_one_list_more_often_than_there_is_time_for(tmp_path):
    laughs = []
    for _ in range(60):
        laughs = [laughs, laughs]
    laughs.append(laughs)
    store = CheckpointStore(tmp_path)
    store.save({"laughs": laughs}, iteration=1)
    assert store.load_newest()[1]["laughs"][2][2][0][1] != []
