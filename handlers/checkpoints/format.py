"""What the bytes of a checkpoint may be: tensors and plain Python values.

A checkpoint comes from a disk that may have flipped a bit, or from somebody else. It is checked
before torch reads it, so that nothing in it is executed and nothing expands.
"""

import io
import pickletools
import zipfile
from collections import Counter, OrderedDict, deque
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy

_STORAGES = {
    torch.float64: "DoubleStorage",
    torch.float32: "FloatStorage",
    torch.float16: "HalfStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.complex128: "ComplexDoubleStorage",
    torch.complex64: "ComplexFloatStorage",
    torch.int64: "LongStorage",
    torch.int32: "IntStorage",
    torch.int16: "ShortStorage",
    torch.int8: "CharStorage",
    torch.uint8: "ByteStorage",
    torch.bool: "BoolStorage",
    torch.qint8: "QInt8Storage",
    torch.quint8: "QUInt8Storage",
    torch.qint32: "QInt32Storage",
}
# All that the pickle of a plain state names. `weights_only` allows more, some of which allocates as
# much as it is told to: `bytearray(10**11)`, `torch.Tensor(10**11)`, the `UntypedStorage` of uint16
# and float8 tensors; or looks up any text codec, for bytes.
_GLOBALS = {
    "__builtin__ complex",
    "__builtin__ set",
    "collections Counter",
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch per_channel_affine",
    "torch per_tensor_affine",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_qtensor",
    "torch._utils _rebuild_sparse_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch.serialization _get_layout",
    *(f"torch {storage}" for storage in _STORAGES.values()),
    *(str(dtype).replace(".", " ") for dtype in _STORAGES),
}
_PLAIN = (str, int, float, complex, bool, type(None), torch.Size, torch.dtype, torch.device)


def encode(state: dict[str, Any]) -> bytes:
    """The bytes of a state; equal states have equal bytes.

    Args:
        state: see `plain`.

    Raises:
        ValueError: it holds what `decode` would refuse; names the key.

    Example:
        >>> decode(encode({"rates": [0.1, 0.2], "weight": torch.arange(3)}))
        {'rates': [0.1, 0.2], 'weight': tensor([0, 1, 2])}
    """
    buffer = io.BytesIO()  # by path, torch would write the file's name into the bytes
    copy = plain(state)
    try:
        torch.save(copy, buffer)
    except Exception as error:
        raise ValueError(f"state: torch.save failed ({error})") from error
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


def plain(value: Any, key: str = "state") -> Any:
    """A copy of a state whose containers and values are those that a checkpoint may hold.

    Tensors, dicts, lists, tuples, sets, numbers, texts, sizes, dtypes and devices stay what they
    are, a Counter and an OrderedDict, too. Of numpy and collections the plain equivalent is taken:
    a tensor for an array (int64 for unsigned numbers of 16 bits and more), a number for a scalar,
    a list for a deque, a dict, a tuple.

    Raises:
        ValueError: it holds something else; names the key.

    Example:
        >>> plain({"rate": np.float64(0.1), "last": deque([1, 2]), "seen": np.zeros(2)})
        {'rate': 0.1, 'last': [1, 2], 'seen': tensor([0., 0.], dtype=torch.float64)}
    """
    try:
        return _Plain().of(value, key)
    except RecursionError:
        raise ValueError(f"{key} is nested too deeply") from None


class _Plain:
    """One copy: what stands in it twice, or within itself, does so in the copy."""

    def __init__(self) -> None:
        self._copies: dict[int, Any] = {}
        self._originals: list[Any] = []  # alive while their ids are in use

    def of(self, value: Any, key: str) -> Any:
        if id(value) in self._copies:
            return self._copies[id(value)]
        if isinstance(value, torch.Tensor):
            return self._keep(value, _plain_tensor(value, key))
        if isinstance(value, np.ndarray):
            return self._keep(value, self._of_array(value, key))
        if isinstance(value, np.generic):
            number = value.item()
            if not isinstance(number, _PLAIN):
                raise ValueError(f"{key} is a {type(value).__name__}; keep a number or a text")
            return number
        if isinstance(value, dict):
            kind = type(value) if type(value) in (dict, OrderedDict, Counter) else dict
            mapping = self._keep(value, kind())
            for name, item in value.items():
                mapping[self.of(name, f"a key of {key}")] = self.of(item, f"{key}[{name!r}]")
            if kind is OrderedDict and vars(value):  # a module's state has its versions there
                mapping.__dict__.update(self.of(vars(value), key))
            return mapping
        if isinstance(value, list | deque):
            items = self._keep(value, [])
            items.extend(self.of(item, f"{key}[{index}]") for index, item in enumerate(value))
            return items
        if isinstance(value, tuple) and not isinstance(value, torch.Size):
            return tuple(self.of(item, f"{key}[{index}]") for index, item in enumerate(value))
        if type(value) is set:
            return {self.of(item, f"an item of {key}") for item in value}
        if type(value) not in _PLAIN:
            raise ValueError(f"{key} is a {type(value).__name__}; keep tensors and plain values")
        return value

    def _keep(self, value: Any, copy: Any) -> Any:
        self._originals.append(value)
        self._copies[id(value)] = copy
        return copy

    def _of_array(self, array: "np.ndarray[Any, Any]", key: str) -> Any:
        is_wide = array.dtype.kind == "u" and array.dtype.itemsize > 1
        dtype = np.dtype(np.int64) if is_wide else array.dtype.newbyteorder("=")
        try:
            if is_wide and array.size and array.max() > np.iinfo(np.int64).max:
                raise TypeError
            # torch knows no other byte order and no negative stride
            return torch.from_numpy(np.array(array, dtype=dtype, order="C"))
        except TypeError:  # texts, objects, numbers of 2**63 and more
            return self.of(array.tolist(), key)


def _plain_tensor(tensor: torch.Tensor, key: str) -> torch.Tensor:
    if is_lazy(tensor):
        raise ValueError(f"{key} is a lazy module's, not yet made: run a batch through it first")
    if tensor.is_meta or tensor.dtype not in _STORAGES:
        raise ValueError(f"{key} is a tensor without numbers or of {tensor.dtype}; convert it")
    # A name that begins with an underscore is torch's own: Dynamo marks an optimizer's moments.
    if type(tensor) is torch.Tensor and any(not name.startswith("_") for name in vars(tensor)):
        raise ValueError(f"{key} is a tensor with attributes, which would be lost; clone() it")
    try:
        tensor = tensor.detach()
        if type(tensor) is not torch.Tensor:
            tensor = tensor.as_subclass(torch.Tensor)
        if tensor.layout is torch.strided and not tensor.is_quantized:
            tensor = tensor.resolve_conj().resolve_neg()
            # An expanded view claims more than its storage holds; a loader must not believe that.
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                tensor = tensor.contiguous()
        _check_tensor(key, tensor)
    except (NotImplementedError, RuntimeError):  # a wrapper without a storage, such as a DTensor
        raise ValueError(f"{key} is a {type(tensor).__name__}; convert it first") from None
    return tensor


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
        elif type(value) in (dict, OrderedDict, Counter):
            todo.extend((f"a key of {key}", name) for name in value)
            todo.extend((f"{key}[{name!r}]", item) for name, item in value.items())
        elif type(value) in (list, tuple, set):
            todo.extend((f"{key}[{index}]", item) for index, item in enumerate(value))
        elif type(value) not in _PLAIN:
            raise ValueError(f"{key} is a {type(value).__name__}; keep tensors and plain values")


def _check_tensor(key: str, tensor: torch.Tensor) -> None:
    # Subclasses, attributes and other layouts are pickled by functions outside _GLOBALS.
    bare = type(tensor) in (torch.Tensor, torch.nn.Parameter) and not vars(tensor)
    if not bare or tensor.is_meta or tensor.is_nested or tensor.dtype not in _STORAGES:
        raise ValueError(f"{key} is no plain tensor of numbers; convert it first")
    if tensor.layout is torch.strided:
        # An expanded view claims any size at no cost, until an operation allocates it.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{key} is larger than its storage; clone() it first")
    elif tensor.layout not in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc):
        raise ValueError(f"{key} has the layout {tensor.layout}; convert it first")
