"""The flags that the subcommands share, and how a command line becomes a recipe."""

import argparse
import contextlib
import inspect
import io
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ultimus_ignite.data import sources
from ultimus_ignite.errors import ExitCode, UserError
from ultimus_ignite.recipe import RECIPES, Recipe, RecipeName
from ultimus_ignite.run_directory import RunDirectory

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
_TYPES = ConstructorRegistry()


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The flags of every subcommand."""

    debug: Flag = False
    """Show the traceback of an error in the run."""


@dataclass(frozen=True, kw_only=True)
class RecipeArguments(Arguments):
    """The flags of a subcommand that takes a recipe; every field of the recipe is a flag."""

    recipe: tyro.conf.OmitArgPrefixes[Recipe]
    recipe_name: Annotated[RecipeName, tyro.conf.arg(name="recipe")] = "classic"
    """Named recipe; flags such as --epochs change its fields."""


@dataclass(frozen=True, kw_only=True)
class FolderArguments(RecipeArguments):
    """The flags of a subcommand that looks at the folder of a run."""

    out: Path | None = None
    """Folder of the run; runs/RECIPE if not given."""
    resume: Flag = False
    """Continue the run in --out, or begin one if there is none."""

    @property
    def directory(self) -> RunDirectory:
        """The folder of the run."""
        return RunDirectory(writable(self.out or Path("runs") / self.recipe_name))


@dataclass(frozen=True, kw_only=True)
class RunArguments(FolderArguments):
    """The flags of a run."""

    extend_epochs: Flag = False
    """Allow --resume with another number of --epochs than the run began with."""


AnyArguments = TypeVar("AnyArguments", bound=Arguments)
AnyRecipeArguments = TypeVar("AnyRecipeArguments", bound=RecipeArguments)


def parse(
    arguments: type[AnyArguments], prog: str, argv: Sequence[str], default: Any = None
) -> AnyArguments:
    """Parse flags with tyro; its error message becomes a one-line `UserError`.

    The docstring of the dataclass ``arguments`` is the help text, and ``default`` is an instance of
    it with the values of the flags that are not in ``argv``.
    """
    _check_texts(argv)
    complaint = io.StringIO()
    description = f"{inspect.getdoc(arguments)}\n\n{ExitCode.table()}"
    try:
        with contextlib.redirect_stderr(complaint):
            parsed: AnyArguments = tyro.cli(
                arguments,
                prog=prog,
                description=description,
                args=list(argv),
                default=default,
                registry=_TYPES,
            )
        return parsed
    except SystemExit as end:
        if end.code != ExitCode.BAD_INPUT:
            raise
    # A check of several flags stands in a class, whose name says nothing to the user.
    complaint_of_class = "^Error parsing [A-Za-z]+: "
    raise UserError(re.sub(complaint_of_class, "", _without_frame(complaint.getvalue())))


def parse_recipe(
    arguments: type[AnyRecipeArguments], prog: str, argv: Sequence[str], **changes: Any
) -> AnyRecipeArguments:
    """`parse` with the defaults of the recipe that ``--recipe`` names, except for ``changes``.

    Raises:
        UserError: a flag is wrong, as far as this can be known without torch.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", default="classic", nargs="?")
    name = parser.parse_known_args([*argv])[0].recipe
    recipe = replace(RECIPES.get(name, Recipe()), **changes)  # tyro rejects an unknown name
    parsed = parse(arguments, prog, argv, default=arguments(recipe=recipe))
    sources.check(parsed.recipe.data)
    return parsed


@_TYPES.primitive_rule
def _json_object(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """How tyro reads a field of the type dict[str, Any]."""
    if info.type != dict[str, Any]:
        return None

    def read(texts: list[str]) -> dict[str, Any]:
        try:
            value = json.loads(texts[0])
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"expected JSON such as '{{\"width\": 8}}', got {texts[0]}")
        return value

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    )


def writable(folder: Path) -> Path:
    """The folder with ``~`` expanded, if it can be made and written; nothing is left behind.

    Raises:
        UserError: it cannot.
    """
    folder = expand(folder)
    path = Path(os.path.abspath(folder))  # noqa: PTH100 (without "..", and links are kept)
    place = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
    try:
        with tempfile.TemporaryDirectory(dir=place) as trial:  # fails in a file or a broken link
            Path(trial, path.relative_to(place)).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{folder} cannot be written ({reason}): choose another --out") from None
    return folder


def expand(path: Path) -> Path:
    """The path with ``~`` expanded.

    Raises:
        UserError: there is no such user.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(f"{path}: no such user: write ./{path} if it begins with ~") from None


def _check_texts(argv: Sequence[str]) -> None:
    """Refuse what no flag takes: an empty text, as of an unset variable, and other than UTF-8."""
    for before, text in zip(["the first argument", *argv], argv, strict=False):
        if not text or re.fullmatch("--[a-z-]+=", text):
            raise UserError(f"{text or before}: expected a value, got an empty text")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{text!r}: not UTF-8: rename it, or link to it") from None


def _without_frame(text: str) -> str:
    """The sections of the box that tyro draws, in one line and without the title.

    Example:
        >>> _without_frame(" Wrong \\n -------- \\n 3 is odd \\n -------- \\n See --help ")
        '3 is odd; See --help'
    """
    _, *rows = text.splitlines()
    # U+2500 to U+257F draw the box. Without Unicode, its rules are rows of dashes.
    inside = "\n".join(re.sub("[\u2500-\u257f]", "", row).strip() for row in rows)
    sections = re.split("^-*$", inside, flags=re.MULTILINE)
    return "; ".join(" ".join(section.split()) for section in sections if section.strip())
