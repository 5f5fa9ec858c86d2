"""`ultimus evaluate RUN`: what the model of a run is worth on labelled images."""

import csv
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from ultimus_ignite.commands.arguments import Arguments, Flag, expand, parse, writable
from ultimus_ignite.data import sources
from ultimus_ignite.errors import UserError, one_line

if TYPE_CHECKING:
    from ultimus_ignite.results.evaluation import Evaluation


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments(Arguments):
    """Measure the model of a run on its test images, or on those of other data.

    Nothing is written unless --out is given.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    data: str | None = None
    """Other data than the run's, with classes of the run: digits, folder:DIR, ..."""
    data_dir: str | None = None
    """Folder for downloads and decoded images; that of the run if not given."""
    skip_unreadable: Flag = False
    """Leave out files of a folder that are not readable images."""
    out: Path | None = None
    """Folder for the confusion matrix: confusion.png and confusion.csv."""
    json: Flag = False
    """Print one JSON object."""


def main(prog: str, argv: Sequence[str]) -> None:
    """Print the measures, and write the confusion matrix."""
    arguments = parse(EvaluateArguments, prog, argv)
    if arguments.data is not None:
        sources.check(arguments.data)
    out = None if arguments.out is None else writable(arguments.out)

    from ultimus_ignite.results.evaluation import evaluate
    from ultimus_ignite.results.labelled_images import load_labelled_images
    from ultimus_ignite.results.loaded_run import load_run

    with redirect_stdout(sys.stderr):  # notes, and what a model of the user may print
        run = load_run(expand(arguments.run))
        images, labels, source, notes = load_labelled_images(
            run,
            arguments.data,
            data_dir=arguments.data_dir,
            skip_unreadable=arguments.skip_unreadable,
        )
        for note in notes:
            print(note)
        evaluation = evaluate(run, images, labels)
    written = [] if out is None else _write_confusion(evaluation, out)
    if arguments.json:
        print(json.dumps({"data": source, **to_dict(evaluation)}, indent=2))
    else:
        print(f"data: {source}", table(evaluation), *written, sep="\n")


def to_dict(evaluation: "Evaluation") -> dict[str, Any]:
    """What JSON can hold of an evaluation: all but the probabilities and labels of the images."""
    return {
        "accuracy": evaluation.accuracy,
        "interval": evaluation.interval,
        "loss": evaluation.loss,
        "count": evaluation.count,
        "top5": evaluation.top5,
        "calibration_error": evaluation.calibration_error,
        "per_class": {name: asdict(s) for name, s in evaluation.per_class.items()},
        "confusion": evaluation.confusion.tolist(),
    }


def table(evaluation: "Evaluation") -> str:
    """The measures, then a row for each class."""
    from ultimus_ignite.results.evaluation import CALIBRATION_BINS

    low, high = evaluation.interval
    right = int(evaluation.confusion.trace())
    lines = [
        f"accuracy: {evaluation.accuracy:.2%} ({right}/{evaluation.count}), "
        f"95 % interval {low:.2%} to {high:.2%}",
        f"loss: {evaluation.loss:.4f}",
        f"expected calibration error: {evaluation.calibration_error:.2%} ({CALIBRATION_BINS} bins)",
    ]
    if evaluation.top5 is not None:
        lines.insert(1, f"top-5 accuracy: {evaluation.top5:.2%}")
    names = [one_line(name) for name in evaluation.per_class]
    width = max(5, *map(len, names))
    lines.append(f"{'class':{width}}  images  precision   recall       F1")
    for name, scores in zip(names, evaluation.per_class.values(), strict=True):
        shares = f"{scores.precision:9.2%}  {scores.recall:7.2%}  {scores.f1:7.2%}"
        lines.append(f"{name:{width}}  {scores.count:6}  {shares}")
    return "\n".join(lines)


def _write_confusion(evaluation: "Evaluation", out: Path) -> list[Path]:
    """Write confusion.csv, a row for each true class, and its picture; returns both paths."""
    from ultimus_ignite.handlers.support.figures import draw_confusion, save_figure

    names, counts = list(evaluation.per_class), evaluation.confusion.numpy()
    picture, file = out / "confusion.png", out / "confusion.csv"
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_figure(draw_confusion(counts, names), picture)
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["true \\ predicted", *names])
            writer.writerows([name, *row] for name, row in zip(names, counts, strict=True))
    except OSError as error:
        reason = f"{out} cannot be written ({error.strerror}): choose another --out"
        raise UserError(reason) from None
    return [picture, file]
