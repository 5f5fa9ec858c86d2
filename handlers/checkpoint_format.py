"""What the bytes of a checkpoint may be: plain dense tensors and plain Python values, all finite.

A checkpoint comes from a disk that may have flipped a bit, or from somebody else. It is checked
before torch reads it, so that nothing in it is executed and nothing expands.
"""

import io
import pickletools
import zipfile
from collections import OrderedDict
from typing import Any

import torch

_STORAGES = {
    torch.float64: "DoubleStorage",
    torch.float32: "FloatStorage",
    torch.float16: "HalfStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.int64: "LongStorage",
    torch.int32: "IntStorage",
    torch.int16: "ShortStorage",
    torch.int8: "CharStorage",
    torch.uint8: "ByteStorage",
    torch.bool: "BoolStorage",
}

# All that the pickle of a plain state names. `weights_only` allows more, some of which allocates as
# much as it is told to: `bytearray(10**11)`, `torch.Tensor(10**11)`.
_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {storage}" for storage in _STORAGES.values()),
}


def encode(state: dict[str, Any]) -> bytes:
    """The bytes of a state; equal states have equal bytes.

    Args:
        state: dense tensors and plain Python values in dicts, lists and tuples. Tensors are finite.

    Raises:
        ValueError: it holds what `decode` would refuse; names the key.

    Example:
        >>> decode(encode({"rates": [0.1, 0.2], "weight": torch.arange(3)}))
        {'rates': [0.1, 0.2], 'weight': tensor([0, 1, 2])}
    """
    _check_values(state)
    buffer = io.BytesIO()  # by path, torch would write the file's name into the bytes
    torch.save(state, buffer)
    return buffer.getvalue()


def decode(data: bytes) -> dict[str, Any]:
    """The state that bytes stand for, its tensors on the CPU.

    Raises:
        Exception: of any kind: they are not the bytes of a checkpoint.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        names = {entry.filename.lower() for entry in entries}  # torch takes DATA.PKL for data.pkl
        sound = (
            len(names) == len(entries)
            and all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            and sum(entry.file_size for entry in entries) <= len(data)
            and archive.testzip() is None
        )
        if not sound:
            raise ValueError("it is no archive that torch.save wrote")
        _check_globals(archive.read("archive/data.pkl"))
    try:
        state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # whose text advises an unsafe load: not ours to pass on
        raise ValueError(f"torch.load failed ({type(error).__name__})") from error
    if type(state) is not dict:
        raise ValueError(f"it holds a {type(state).__name__} instead of a dict")
    _check_values(state)
    return state


def _check_globals(pickle: bytes) -> None:
    # The other opcodes that import (INST, STACK_GLOBAL, EXT1 ...) are unknown to torch's unpickler.
    operations = pickletools.genops(pickle)
    found = {str(argument) for opcode, argument, _ in operations if opcode.name == "GLOBAL"}
    if foreign := found - _GLOBALS:
        raise ValueError(f"it names {', '.join(map(repr, sorted(foreign)))}")


def _check_values(state: dict[str, Any]) -> None:
    """Raise a ValueError that names the key of a value which no checkpoint may hold."""
    todo: list[tuple[str, Any]] = [("state", state)]
    seen: set[int] = set()  # a list may hold itself, or another one 2**40 times over
    while todo:
        key, value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            _check_tensor(key, value)
        elif type(value) in (dict, OrderedDict):
            todo.extend((f"a key of {key}", name) for name in value)
            todo.extend((f"{key}[{name!r}]", item) for name, item in value.items())
        elif type(value) in (list, tuple):
            todo.extend((f"{key}[{index}]", item) for index, item in enumerate(value))
        elif type(value) not in (str, int, float, bool, type(None)):
            raise ValueError(f"{key} is a {type(value).__name__}; keep tensors and plain values")


def _check_tensor(key: str, tensor: torch.Tensor) -> None:
    # Subclasses, attributes and other layouts are pickled by functions outside _GLOBALS.
    bare = type(tensor) in (torch.Tensor, torch.nn.Parameter) and not vars(tensor)
    dense = tensor.layout is torch.strided and not tensor.is_meta and tensor.dtype in _STORAGES
    if not (bare and dense):
        raise ValueError(f"{key} is no plain dense tensor of numbers; convert it first")
    # An expanded view claims any size at no cost, until an operation allocates it.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{key} is larger than its storage; clone() it first")
    # min and max are NaN where any element is; unlike isfinite(), they need no memory.
    if tensor.is_floating_point() and tensor.numel() > 0:
        smallest, largest = torch.aminmax(tensor)
        if not (smallest.isfinite() and largest.isfinite()):
            raise ValueError(f"{key} holds NaN or infinity")
