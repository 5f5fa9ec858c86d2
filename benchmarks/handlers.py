"""Claim: Ignite's own examples take fewer lines with these handlers than with the stock ones.

    python benchmarks/handlers.py

Each situation of Ignite's examples is written twice in `tests/ignite_examples/`, around the same
model, data and step, and `tests/test_ignite_examples.py` runs both and compares what they leave.
Counted are statements, and lines without comments, docstrings, decorators and blank ones, of the
two scripts that attach the handlers. Both are formatted by ruff.

Results: docs/results.md.
"""

import ast
from pathlib import Path

from report import print_table

FOLDER = Path(__file__).parents[1] / "tests" / "ignite_examples"


def size(path: Path) -> tuple[int, int]:
    """Statements and lines of a script: of what is left when Python has parsed it."""
    tree = ast.parse(path.read_text())
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    docstrings = [node for node in statements if _is_docstring(node)]
    lines = {
        number
        for node in statements
        if node not in docstrings
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    blank = {
        number
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if not line.strip() or line.lstrip().startswith("#")
    }
    return len(statements) - len(docstrings), len(lines - blank)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def main() -> None:
    rows, totals = [], [0] * 4
    for stock in sorted(FOLDER.glob("*_stock.py")):
        name = stock.stem.removesuffix("_stock")
        sizes = [*size(stock), *size(FOLDER / f"{name}_ours.py")]
        totals = [total + one for total, one in zip(totals, sizes, strict=True)]
        rows.append([name, *map(str, sizes)])
    rows.append(["all", *map(str, totals)])
    header = ["example", "stock: statements", "lines", "these: statements", "lines"]
    print_table(header, rows)


if __name__ == "__main__":
    main()
