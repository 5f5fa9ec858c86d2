"""What the benchmarks share: rounds in turn, a table, and the line that says where it ran."""

import io
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm


class SilentTerminal(io.TextIOBase):
    """Has bars drawn as a terminal has, and shows nothing."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


def medians(contestants: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, float]:
    """The median of what each contestant returns in ``rounds`` turns.

    A round gives each its turn, so that a machine which slows down for a while slows all of them.
    One more round goes first, unmeasured: imports, caches and the allocator are cold in it.
    """
    results: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in tqdm(range(rounds + 1), desc="rounds", leave=False, disable=None):
        for name, contestant in contestants.items():
            result = contestant()
            if turn > 0:
                results[name].append(result)
    return {name: median(values) for name, values in results.items()}


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table: the first column to the left, the numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    aligns = ["<", *">" * (len(widths) - 1)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for cells in (header, rule, *rows):
        columns = zip(cells, aligns, widths, strict=True)
        print("|", " | ".join(f"{cell:{align}{width}}" for cell, align, width in columns), "|")


def print_environment(*packages: str) -> None:
    """The hardware, and the versions of Python, torch and ``packages``."""
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {version(name)}" for name in ("torch", *packages)]
    print(f"\n{_processor()}, {torch.get_num_threads()} torch threads; {', '.join(versions)}")


def _processor() -> str:
    """The processor's name, for which Python's own `platform` has no answer on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.processor()
