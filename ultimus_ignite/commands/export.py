"""`ultimus export RUN`: the model of a run as one file for other programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from ultimus_ignite.commands.arguments import Arguments, expand, parse, writable
from ultimus_ignite.errors import UserError

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors"}


@dataclass(frozen=True, kw_only=True)
class ExportArguments(Arguments):
    """Export the model of a run as one file, in float32, for any number of images.

    The written file is loaded anew and compared with the model on real images; only then is it put
    in place. It computes what the run's evaluations do, the mirror image included. Its metadata
    have the names of the classes and the normalisation.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    format: Literal["onnx", "torch-export", "safetensors"]
    """ONNX needs pip install onnx onnxscript onnxruntime; safetensors has the weights alone."""
    input: Literal["float32", "uint8"] = "float32"
    """float32: normalised images in, logits out. uint8: raw pixels in, probabilities out."""
    out: Path | None = None
    """The file; the name of the run, in the current folder, if not given."""


def main(prog: str, argv: Sequence[str]) -> None:
    """Export, and print what was compared and the path of the file."""
    arguments = parse(ExportArguments, prog, argv)
    folder = expand(arguments.run)
    out = arguments.out or Path(folder.resolve().name + SUFFIXES[arguments.format])
    out = writable(out.parent) / out.name

    from ultimus_ignite.results.export import export_run
    from ultimus_ignite.results.loaded_run import load_run

    run = load_run(folder, device="cpu")
    try:
        export = export_run(run, out, file_format=arguments.format, input=arguments.input)
    except OSError as error:
        reason = f"{out} cannot be written ({error.strerror}): choose another --out"
        raise UserError(reason) from None
    outputs = "probabilities" if arguments.input == "uint8" else "logits"
    print(f"{export.images}: the {outputs} differ from the model's by at most", end=" ")
    print(f"{export.difference:.1e}")
    if run.recipe.mirror:
        print("mirrored: an output is the mean for the image and its mirror image")
    if run.recipe.precision != "float32":
        differ = f"the probabilities differ by at most {export.from_evaluation:.1e}"
        print(f"float32, while the run was evaluated in {run.recipe.precision}: {differ}")
    print(export.path)
