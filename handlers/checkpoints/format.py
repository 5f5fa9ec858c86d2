"""What the bytes of a checkpoint may be: tensors and plain Python values.

A checkpoint comes from a disk that may have flipped a bit, or from somebody else. It is checked
before torch reads it, so that nothing in it is executed and nothing expands.
"""

import io
import math
import pickle
import pickletools
import re
import struct
import sys
import zipfile
from collections import Counter, OrderedDict, deque
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy

_DTYPES = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex128, torch.complex64,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    torch.qint8, torch.quint8, torch.qint32,
}  # fmt: skip
_PLAIN = (str, int, float, complex, bool, type(None), torch.Size, torch.dtype, torch.device)
_CALLS = {  # all that torch.save calls, and the types of the arguments: see `_shape`
    "__builtin__ complex": r"\(ff\)",
    "__builtin__ set": r"\(l\)",
    "collections Counter": r"\(l\)",
    "collections OrderedDict": r"\(\)",
    "torch Size": r"\(\(i*\)\)",
    "torch device": r"\(si?\)",
    "torch._utils _rebuild_parameter": r"\([rN]NN\)",
    "torch._utils _rebuild_qtensor": r"\(bi\(i*\)\(i*\)\(b(fi|rri)\)NN\)",
    "torch._utils _rebuild_sparse_tensor": r"\(N\(rrr?\(i*\)N?\)\)",
    "torch._utils _rebuild_tensor_v2": r"\(bi\(i*\)\(i*\)NNl?\)",
    "torch.serialization _get_layout": r"\(s\)",
}


def encode(state: dict[str, Any]) -> bytes:
    """The bytes of a state; equal states, with the same parts shared, have equal bytes.

    Args:
        state: see `plain`.

    Raises:
        ValueError: it holds what `decode` would refuse; names the key.

    Example:
        >>> decode(encode({"rates": [0.1, 0.2], "weight": torch.arange(3)}))
        {'rates': [0.1, 0.2], 'weight': tensor([0, 1, 2])}
    """
    buffer = io.BytesIO()  # by path, torch would write the file's name into the bytes
    try:
        torch.save(plain(state), buffer)
    except Exception as error:
        raise ValueError(str(error)) from error
    return buffer.getvalue()


def decode(data: bytes) -> dict[str, Any]:
    """The state that bytes stand for, its tensors on the CPU.

    Raises:
        Exception: of any kind: they are not the bytes of a checkpoint.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        names = {entry.filename.lower() for entry in entries}  # torch takes DATA.PKL for data.pkl
        # zipfile looks for the directory right before its end, torch where this end points.
        end = struct.unpack("<4s44xQ 4s4xQ4x 4s18x", data[-98:])
        sound = (
            end == (b"PK\6\6", archive.start_dir, b"PK\6\7", len(data) - 98, b"PK\5\6")
            and len(names) == len(entries)
            and all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            and sum(entry.file_size for entry in entries) <= len(data)
            and archive.testzip() is None
        )
        if not sound:
            raise ValueError("it is no archive that torch.save wrote")
        _check_pickle(archive.read("archive/data.pkl"), limit=16 * len(data))
    try:
        state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # whose text advises an unsafe load: not ours to pass on
        raise ValueError(f"torch.load failed ({type(error).__name__})") from error
    if type(state) is not dict:
        raise ValueError(f"it holds a {type(state).__name__} instead of a dict")
    return state


class _Set(set[Any]):
    """Pickled as a set, in the order of its texts: a set's own depends on PYTHONHASHSEED."""

    def __reduce__(self) -> tuple[Any, ...]:
        return set, (sorted(self, key=repr),)


def plain(value: Any, key: str = "state", memo: dict[Any, Any] | None = None) -> Any:
    """A copy of a state whose containers and values are those that a checkpoint may hold.

    Tensors, dicts, lists, tuples, sets, numbers, texts, sizes, dtypes and devices stay what they
    are, a Counter and an OrderedDict, too. Of numpy and collections the plain equivalent is taken:
    a tensor for an array (int64 for unsigned numbers of 16 bits and more), a number for a scalar,
    a list for a deque, a dict, a tuple. What stands twice, or within itself, does so in the copy.

    Raises:
        ValueError: it holds something else; names the key.

    Example:
        >>> plain({"rate": np.float64(0.1), "last": deque([1, 2]), "seen": np.zeros(2)})
        {'rate': 0.1, 'last': [1, 2], 'seen': tensor([0., 0.], dtype=torch.float64)}
    """
    memo = {} if memo is None else memo
    if type(value) is str:  # pickle tells one text that stands twice from two that are equal
        return sys.intern(value)
    if type(value) in (complex, torch.Size, torch.device):
        return pickle.loads(pickle.dumps(value))  # each time another object
    is_long = type(value) is int and value.bit_length() >= 2040  # torch.load reads 255 bytes
    if is_long or (type(value) is torch.dtype and value not in _DTYPES):
        raise ValueError(f"{key}: no checkpoint can hold this {type(value).__name__}")
    if type(value) in _PLAIN:
        return value
    if isinstance(value, np.generic) and isinstance(value.item(), _PLAIN):
        return plain(value.item(), key, memo)
    if isinstance(value, tuple):
        return tuple(plain(item, f"{key}[{i}]", memo) for i, item in enumerate(value))
    if id(value) in memo:
        return memo[id(value)][0]
    copy: Any = []
    if isinstance(value, torch.Tensor):
        copy = _plain_tensor(value, key)
    elif isinstance(value, np.ndarray):
        copy = _plain_array(value, key, memo)
    elif isinstance(value, set):
        copy = _Set(plain(item, f"an item of {key}", memo) for item in value)
    elif isinstance(value, dict):
        copy = type(value)() if type(value) in (OrderedDict, Counter) else {}
    elif not isinstance(value, list | deque):
        raise ValueError(f"{key} is a {type(value).__name__}; keep tensors and plain values")
    memo[id(value)] = copy, value  # the value lives while its id is in use
    if isinstance(value, dict):
        for name, item in value.items():
            plain_name = plain(name, f"a key of {key}", memo)
            copy[plain_name] = plain(item, f"{key}[{name!r}]", memo)
        if type(value) is OrderedDict and vars(value):  # a module's state has its versions there
            vars(copy).update(plain(vars(value), key, memo))
    elif isinstance(value, list | deque):
        copy.extend(plain(item, f"{key}[{i}]", memo) for i, item in enumerate(value))
    return copy


def _plain_array(array: "np.ndarray[Any, Any]", key: str, memo: dict[Any, Any]) -> Any:
    is_wide = array.dtype.kind == "u" and array.dtype.itemsize > 1
    dtype = np.dtype(np.int64) if is_wide else array.dtype.newbyteorder("=")
    try:
        if is_wide and array.size and array.max() > np.iinfo(np.int64).max:
            raise TypeError
        # torch knows no other byte order and no negative stride
        return torch.from_numpy(np.array(array, dtype=dtype, order="C"))
    except TypeError:  # texts, objects, numbers of 2**63 and more
        return plain(array.tolist(), key, memo)


def _plain_tensor(tensor: torch.Tensor, key: str) -> torch.Tensor:
    if is_lazy(tensor):
        raise ValueError(f"{key} is a lazy module's, not yet made: run a batch through it first")
    # A name that begins with an underscore is torch's own: Dynamo marks an optimizer's moments.
    if type(tensor) is torch.Tensor and any(not name.startswith("_") for name in vars(tensor)):
        raise ValueError(f"{key} is a tensor with attributes, which would be lost; clone() it")
    try:
        tensor = tensor.detach().resolve_conj().resolve_neg()
        if type(tensor) is not torch.Tensor:
            tensor = tensor.as_subclass(torch.Tensor)
        if tensor.is_meta or tensor.is_nested or tensor.dtype not in _DTYPES:
            raise ValueError(f"{key} is a tensor without numbers or of {tensor.dtype}; convert it")
        # An expanded view, or part of a sparse tensor, claims more than its storage holds.
        size = tensor.numel() * tensor.element_size()
        if tensor.layout is not torch.strided or size > tensor.untyped_storage().nbytes():
            tensor = tensor.clone()
    except (NotImplementedError, RuntimeError):  # a wrapper without a storage, such as a DTensor
        raise ValueError(f"{key} is a {type(tensor).__name__}; convert it first") from None
    return tensor


def _check_pickle(pickled: bytes, limit: int) -> None:
    """Follow a pickle without making its values, and refuse what torch.save does not write.

    `weights_only` allows more: `bytearray(10**11)`, a tensor larger than its storage, a tuple of
    tuples from the memo that takes years to hash. Numbers and texts stand for themselves, a range
    for a tensor of as many numbers, [] for a list or a dict, {} for one from the memo, bytes for a
    name or a storage. Of tensors that go into others, torch copies some: at most `limit` numbers.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    storages: dict[str, bytes] = {}  # how many numbers each has; torch believes the first claim
    for opcode, value, _ in pickletools.genops(pickled):
        is_marked = pickletools.markobject in opcode.stack_before
        start = marks.pop() if is_marked else len(stack) - len(opcode.stack_before)
        items = stack[start:]
        match opcode.name:
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                items = [{} if memo[value] == [] else memo[value]]
                limit = limit if re.fullmatch("[^l]{1,99}", _shape(items[0])) else -1
            case "GLOBAL" if isinstance(value, str):
                items = [None if value.replace(" ", ".") in map(str, _DTYPES) else value.encode()]
            case "EMPTY_LIST" | "EMPTY_DICT":
                items = [[]]
            case "MARK":
                marks.append(start)
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3" | "EMPTY_TUPLE":
                items = [tuple(items)]
            case "APPEND" | "APPENDS" | "SETITEM" | "SETITEMS" if "b" not in _shape(tuple(items)):
                items = [] if is_marked else items[:1]
            case "BINPERSID" if _shape(items[0]) == "(sbssi)":
                items = [storages.setdefault(items[0][2], b"%d" % items[0][4])]
            case "REDUCE" if re.fullmatch(_CALLS.get(items[0].decode(), ""), _shape(items[1])):
                made, *others = items[1] or [None]
                if isinstance(made, bytes):  # a storage, of which a tensor is made
                    size = math.prod(map(float, others[1]))
                    limit = limit if size <= float(made) else -1
                    made = range(int(size))
                parts = [part for item in others if isinstance(item, tuple) for part in item]
                limit -= sum(len(part) for part in parts if isinstance(part, range))
                items = [made if isinstance(made, tuple | range) else None]
            case "BUILD" if items == [None, []]:
                items = [None]
            case _ if not opcode.stack_before:
                items = [value] if opcode.stack_after else []
            case name if name != "STOP":
                raise ValueError(f"torch.save writes no {name} of {items[:1]!r:.99}")
        stack[start:] = items
        if limit < 0:
            raise ValueError("it unfolds to more than its bytes")


def _shape(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({''.join(map(_shape, value))})"
    return type(value).__name__[0]
