"""`ultimus predict RUN IMAGE...`: the classes of image files."""

import csv
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ultimus_ignite.commands.arguments import Arguments, Flag, expand, parse
from ultimus_ignite.errors import UserError, one_line
from ultimus_ignite.recipe import check_ranges

if TYPE_CHECKING:
    from ultimus_ignite.results.prediction import Guess

    Ranked = Sequence[tuple[str, list[Guess]]]


@dataclass(frozen=True, kw_only=True)
class PredictArguments(Arguments):
    """Print the most probable classes of image files, in the order given.

    A file that is not a readable image is one line on standard error; the exit code is then 2.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    images: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="IMAGE...", help_behavior_hint="(required)"),
    ]
    """Files, folders, or patterns such as 'photos/**/*.jpg'."""
    top: int = 3
    """Number of classes per image."""
    json: Flag = False
    """Print one JSON object."""
    csv: Flag = False
    """Print a table with a row per image."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.images:
            raise ValueError("expected images after the folder of the run")
        if self.json and self.csv:
            raise ValueError("--json and --csv: give one of them")


def main(prog: str, argv: Sequence[str]) -> None:
    """Print the classes; UserError if a file was not a readable image."""
    arguments = parse(PredictArguments, prog, argv)

    from ultimus_ignite.data.pixels import UnreadableError
    from ultimus_ignite.data.walk import describe_passed_over
    from ultimus_ignite.results.loaded_run import load_run
    from ultimus_ignite.results.prediction import find_files, predict_files

    with redirect_stdout(sys.stderr):  # a model of the user may print
        run = load_run(expand(arguments.run))
        paths, passed_over = find_files([str(expand(Path(image))) for image in arguments.images])
        if passed_over:
            print(one_line(describe_passed_over(passed_over)), file=sys.stderr)
        if not paths:
            raise UserError(f"no images in {', '.join(arguments.images)}")
        answers = predict_files(run, paths, top=arguments.top)

    both = list(zip(paths, answers, strict=True))
    unreadable = [(path, str(why)) for path, why in both if isinstance(why, UnreadableError)]
    ranked = [(path, best) for path, best in both if not isinstance(best, UnreadableError)]
    if arguments.json:
        print(_to_json(ranked, unreadable))
    elif arguments.csv:
        _print_csv(ranked, min(arguments.top, len(run.classes)))
    else:
        for path, best in ranked:
            guesses = ", ".join(f"{name} {probability:.2%}" for name, probability in best)
            print(one_line(f"{path}: {guesses}"))
    for path, why in unreadable:
        print(one_line(f"{path}: not a readable image: {why}"), file=sys.stderr)
    if unreadable:
        raise UserError(f"{len(unreadable)} of {len(paths)} files are not readable images")


def _to_json(ranked: "Ranked", unreadable: Sequence[tuple[str, str]]) -> str:
    """One object: the predictions, and the files without one."""
    predictions = [
        {"path": path, "classes": [{"class": name, "probability": p} for name, p in best]}
        for path, best in ranked
    ]
    reasons = [{"path": path, "reason": reason} for path, reason in unreadable]
    return json.dumps({"predictions": predictions, "unreadable": reasons}, indent=2)


def _print_csv(ranked: "Ranked", top: int) -> None:
    """A row per image: its path, then the classes with their probabilities."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    columns = [f"{column}_{rank + 1}" for rank in range(top) for column in ("class", "probability")]
    writer.writerow(["path", *columns])
    for path, best in ranked:
        writer.writerow([one_line(path), *(value for guess in best for value in guess)])
