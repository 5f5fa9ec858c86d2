"""Question: of small random changes to the code, how many turn a test red? The aim is 92 %.

    pip install -e '.[test]'
    python benchmarks/mutants.py [--count 150] [--seed 1] [--processes 2]

A mutant has one comparison, operator, number, truth value or call replaced or left out, drawn at
random over all files of `ultimus_ignite/` and `handlers/`. Against it run first the tests that
mirror its file, import its module or call its command, then those of whole runs; the first red one
kills it, and so does a test that hangs. Survivors are printed as a line of code each: read them,
since some change nothing that anybody could see.
"""

import argparse
import ast
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from report import print_environment, print_table
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
WIDE = {"test_run", "test_train", "test_doctests", "test_cli", "test_reliability", "test_all"}
WIDE |= {"test_ranks", "test_ranks_history", "test_runs"}
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change to one file: the bytes from ``start`` to ``end`` become ``text``."""

    path: Path  # in the repository
    line: int
    start: int
    end: int
    text: str

    def __str__(self) -> str:
        before = (ROOT / self.path).read_bytes()[self.start : self.end].decode()
        return f"{self.path}:{self.line}: {' '.join(before.split())} -> {self.text}"


def changed(node: ast.AST) -> ast.AST | None:
    """The node with a change, or None if there is none for its kind."""
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in SWAPS:
            return ast.Compare(left, [SWAPS[type(op)]()], [right])
        case ast.BoolOp(op=op, values=values):
            return ast.BoolOp(SWAPS[type(op)](), values)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in SWAPS:
            return ast.BinOp(left, SWAPS[type(op)](), right)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return operand
        case ast.Constant(value=bool(value)):
            return ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            return ast.Constant(value + 1)
        case ast.Expr(value=ast.Call() | ast.Yield()):
            return ast.Expr(ast.Constant(None))
    return None


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every mutant of a file."""
    source = (ROOT / path).read_bytes()
    starts = [0]
    for row in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(row))
    tree = ast.parse(source)
    hints = {id(each) for node in ast.walk(tree) for each in _hints(node)}
    for node in ast.walk(tree):
        if id(node) in hints or (new := changed(node)) is None:
            continue
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        yield Mutant(path, node.lineno, start, end, f"({ast.unparse(new)})")


def _hints(node: ast.AST) -> Iterator[ast.AST]:
    """What stands in annotations, which nothing reads at run time."""
    for name in ("annotation", "returns"):
        if (hint := getattr(node, name, None)) is not None:
            yield from ast.walk(hint)


def sources() -> list[Path]:
    """The files that are tested, in the repository."""
    rooms = ("ultimus_ignite", "handlers")
    return sorted(f.relative_to(ROOT) for room in rooms for f in ROOT.glob(f"{room}/**/*.py"))


def module_of(path: Path) -> str:
    """The name by which a file is imported."""
    dotted = ".".join(path.with_suffix("").parts)
    return f"ultimus_ignite.{dotted}" if path.parts[0] == "handlers" else dotted


def tests_of(path: Path) -> tuple[list[str], list[str]]:
    """The test files that are nearest to a file, and those of whole runs."""
    near = {*_mirrors(path)}
    if not near:  # a part of what others do
        dotted = module_of(path)
        users = [other for other in sources() if dotted in (ROOT / other).read_text()]
        near = {test for user in users for test in _mirrors(user)}
    room = Path("tests", *path.parent.parts[path.parts[0] == "ultimus_ignite" :])
    while not near:
        near = {str(file.relative_to(ROOT)) for file in ROOT.glob(f"{room}/test_*.py")}
        room = room.parent
    wide = [str(f.relative_to(ROOT)) for f in ROOT.glob("tests/**/test_*.py") if f.stem in WIDE]
    return sorted(near), [file for file in wide if file not in near]


def _mirrors(path: Path) -> list[str]:
    """The test files that have the name of a file, import its module or call its command."""
    is_command = path.parent.name == "commands"
    command = f'"{path.stem.replace("_", "-")}"'
    return [
        str(file.relative_to(ROOT))
        for file in ROOT.glob("tests/**/test_*.py")
        if file.stem == f"test_{path.stem}"
        or module_of(path) in (text := file.read_text())
        or (is_command and command in text)
    ]


def is_green(tests: list[str], copy: Path, timeout: float) -> bool:
    """Whether tests pass in a copy of the repository, in time."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command, cwd=copy, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):  # what a test that hangs has started
            os.killpg(process.pid, signal.SIGKILL)
    if code not in (0, 1, 2):  # 1: a test is red; 2: a file cannot be imported
        raise RuntimeError(f"pytest {' '.join(tests)}: exit code {code}")
    return code == 0


def survives(mutant: Mutant, copy: Path, timeout: float) -> bool:
    """Whether all tests are green with a mutant in a copy of the repository."""
    file = copy / mutant.path
    source = file.read_bytes()
    file.write_bytes(source[: mutant.start] + mutant.text.encode() + source[mutant.end :])
    try:
        return all(is_green(tests, copy, timeout) for tests in tests_of(mutant.path) if tests)
    finally:
        file.write_bytes(source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=400, help="seconds for a set of tests")
    arguments = parser.parse_args()
    everything = [mutant for file in sources() for mutant in mutants_of(file)]
    drawn = random.Random(arguments.seed).sample(everything, arguments.count)

    with tempfile.TemporaryDirectory() as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(arguments.processes):
            copy = Path(folder) / str(number) / "repository"
            shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "build", "runs"))
            (copy / "ultimus_ignite" / "handlers").symlink_to("../handlers")  # as it is installed
            copies.put(copy)

        needed = {test for mutant in drawn for part in tests_of(mutant.path) for test in part}
        if not is_green(sorted(needed), copy, timeout=3600):
            sys.exit("tests are red without a mutant")

        def judge(mutant: Mutant) -> bool:
            copy = copies.get()
            try:
                return survives(mutant, copy, arguments.timeout)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(arguments.processes) as pool:
            verdicts = tqdm(pool.map(judge, drawn), total=len(drawn), disable=None)
            survivors = []
            for mutant, lives in zip(drawn, verdicts, strict=True):
                if lives:
                    survivors.append(mutant)
                    tqdm.write(str(mutant))
    killed = len(drawn) - len(survivors)
    print_table(
        ["possible", "drawn", "killed", "share"],
        [[f"{len(everything):,}", str(len(drawn)), str(killed), f"{killed / len(drawn):.1%}"]],
    )
    print_environment("pytest")


if __name__ == "__main__":
    main()
