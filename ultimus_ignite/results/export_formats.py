"""The file formats of an export: how each is encoded, and how a written file is loaded anew."""

import copy
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ultimus_ignite.errors import one_line
from ultimus_ignite.handlers.checkpoints.saved_state import save_state
from ultimus_ignite.networks.models import reason
from ultimus_ignite.networks.weights_file import METADATA_KEY, encode_weights, load_weights
from ultimus_ignite.results.export_graph import ExportError, ExportGraph, quiet


class FileFormat(NamedTuple):
    """How a graph becomes a file, and a file something that can be called."""

    encode: Callable[[ExportGraph, Mapping[str, Any]], bytes]
    """Graph and metadata to the content of the file; the metadata are what JSON can hold."""
    load: Callable[[Path, ExportGraph], Callable[[Tensor], Tensor]]
    """A written file to a function of images; only safetensors takes the layers of the graph."""


def encode_onnx(graph: ExportGraph, metadata: Mapping[str, Any]) -> bytes:
    """An ONNX model with its weights inside, and the metadata in its ``metadata_props``.

    Raises:
        ExportError: packages are missing, or the model has an operation that ONNX has not.
    """
    _import_onnxruntime()
    program = graph.trace()
    try:
        with quiet():
            converted = torch.onnx.export(
                program,
                input_names=["images"],
                output_names=[graph.output_name],
                dynamic_shapes=({0: "batch"},),
                verbose=False,
            )
            assert converted is not None
            model = converted.model_proto
            model.metadata_props.add(key=METADATA_KEY, value=json.dumps(metadata))
            return bytes(model.SerializeToString())
    except Exception as error:
        name = type(graph.model).__name__
        raise ExportError(one_line(f"{name} has no ONNX file: {reason(error)}")) from error


def load_onnx(path: Path, graph: ExportGraph) -> Callable[[Tensor], Tensor]:
    """A session of onnxruntime on the CPU."""
    onnxruntime = _import_onnxruntime()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def encode_torch_export(graph: ExportGraph, metadata: Mapping[str, Any]) -> bytes:
    """What `torch.export.load` reads, with the metadata among its ``extra_files``."""
    program, file = graph.trace(), io.BytesIO()
    with quiet():
        torch.export.save(program, file, extra_files={METADATA_KEY: json.dumps(metadata)})
    return file.getvalue()


def load_torch_export(path: Path, graph: ExportGraph) -> Callable[[Tensor], Tensor]:
    """The graph as a module."""
    with quiet():
        return torch.export.load(io.BytesIO(path.read_bytes())).module()


def encode_safetensors(graph: ExportGraph, metadata: Mapping[str, Any]) -> bytes:
    """The weights alone, as ``model.safetensors`` in the folder of a run."""
    return encode_weights(save_state(graph.model), metadata)


def load_safetensors(path: Path, graph: ExportGraph) -> Callable[[Tensor], Tensor]:
    """A copy of the graph with the weights of the file."""
    loaded = copy.deepcopy(graph)
    load_weights(loaded.model, path)
    return loaded


FORMATS = {
    "onnx": FileFormat(encode_onnx, load_onnx),
    "torch-export": FileFormat(encode_torch_export, load_torch_export),
    "safetensors": FileFormat(encode_safetensors, load_safetensors),
}
"""The formats by their names in ``ultimus export --format``."""


def _import_onnxruntime() -> Any:
    try:
        import onnx  # noqa: F401 (torch.onnx needs both, and says so only in the middle)
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(
            f"ONNX needs three more packages ({error}): pip install onnx onnxscript onnxruntime"
        ) from None
    return onnxruntime
