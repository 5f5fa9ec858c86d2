"""The subcommands of `ultimus`, one module each, loaded only when called."""

import importlib
from collections.abc import Sequence

from ultimus_ignite.cli import UserError

SUBCOMMANDS = {
    "train": "the same as train-cifar",
    "summary": "the layers of a recipe's model, their output shapes and parameters",
    "plot": "redraw the curves of a run from its history.csv",
    "plot-schedule": "draw the learning rate of every iteration before anything is trained",
    "find-lr": "a range test: which learning rates suit a recipe",
    "doctor": "check data, device, folder and recipe in half a minute",
    "repeat": "train from several seeds: mean, deviation and 95 % interval of the accuracy",
    "verify-resume": "kill a short run at random moments and show that it ends bit-identical",
}


def main(prog: str, argv: Sequence[str]) -> None:
    """Hand the arguments to the subcommand that the first of them names."""
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        rows = [f"  {name:16}{purpose}" for name, purpose in SUBCOMMANDS.items()]
        print("\n".join([f"usage: {prog} SUBCOMMAND [flags, or --help]\n", *rows]))
        return
    if name not in SUBCOMMANDS:
        raise UserError(f"no subcommand {name!r}: expected one of {', '.join(SUBCOMMANDS)}")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    module.main(f"{prog} {name}", rest)
