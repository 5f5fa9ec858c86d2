r"""Records a terminal as an SVG that plays once and then stands still.

Lines are typed to a shell in a pseudo-terminal, an emulator keeps what its screen shows, and that
is drawn, with its colours and bold type: nothing is added, left out or edited but the time, which
is sped up, with long pauses cut short. Where no animation is played, the last screen is shown.

The picture in README is made again, in a minute, by::

    pip install pyte
    run="train-cifar --recipe tokens --data digits --batch-size 32 --epochs 3"
    TQDM_NCOLS=97 python docs/record_terminal.py docs/terminal.svg \
        "$run" "^C EPOCH: 2.* 2./45" "$run --resume" \
        "$run --out runs/unbroken > log" "sha256sum runs/*/model.safetensors"

A line is typed when the shell asks for it; ``^C PATTERN`` presses Ctrl-C once the screen matches.
The commands run in an empty folder. The bar is three columns narrower than the screen, so that the
terminal has room for the ``^C`` behind it.
"""

import os
import pty
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import groupby, pairwise
from math import inf
from pathlib import Path

import pyte

COLUMNS, LINES = 100, 30
# A green prompt and bold commands: bash prints PS0 when a line has been entered.
PROMPT = {"PS1": "\033[32m$\033[0;1m ", "PS0": "\033[0m", "HISTFILE": os.devnull}
AT_PROMPT = r"(^|\n)\$$"

SECONDS = 14.0  # of the animation, at most
PAUSE = 1.0  # seconds before a line is typed; longer ones without a change are cut to it
SLOT = 0.2  # seconds of the animation, of which the last screen is kept

CELL, LINE, MARGIN, TOP = 8.4, 20, 24, 48  # pixels: a character's width and height; around the text
COLOURS = {"default": "#d1d7e0", "black": "#656c76", "red": "#f47067", "green": "#6bc46d"}
COLOURS |= {"brown": "#daaa3f", "blue": "#6cb6ff", "magenta": "#dcbdfb", "cyan": "#76e3ea"}
BLOCKS = " ▏▎▍▌▋▊▉█"  # none to eight eighths of a cell
STYLE = """
text{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;
font-size:14px;white-space:pre}
.past{visibility:hidden}
@keyframes show{from,to{visibility:visible}}
@keyframes wait{from,to{visibility:hidden}}
@media (prefers-reduced-motion:reduce){g{animation:none!important}}
"""

Screen = list[str]  # each row as SVG, "" where it is blank


def record(lines: Sequence[str]) -> Iterator[tuple[float, Screen]]:
    """Type each line in its time; every screen with the second it came at."""
    emulator = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(emulator)
    with tempfile.TemporaryDirectory() as folder:
        shell, terminal = open_shell(folder)
        for line in [*lines, ""]:
            pattern = line[3:] if line.startswith("^C ") else AT_PROMPT
            while True:
                stream.feed(os.read(terminal, 1 << 16))
                yield time.monotonic(), [row(emulator, y) for y in range(LINES)]
                text = "\n".join(map(str.rstrip, emulator.display)).rstrip()
                if re.search(pattern, text, re.DOTALL):
                    break
            if pattern != AT_PROMPT:
                os.write(terminal, b"\x03")
            elif line:
                time.sleep(PAUSE)
                os.write(terminal, f"{line}\n".encode())
        os.close(terminal)
        os.waitpid(shell, 0)


def open_shell(folder: str) -> tuple[int, int]:
    """A shell in a folder: its process and the other end of its terminal."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.system(f"stty cols {COLUMNS} rows {LINES}")
        os.environ.update(PROMPT, TERM="xterm-256color")
        os.execlp("bash", "bash", "--norc", "--noediting", "-i")
    return process, terminal


def row(emulator: pyte.Screen, y: int) -> str:
    """One line of the screen: a run of characters of one look after the other, without margins."""
    cells = [emulator.buffer[y][x] for x in range(COLUMNS)]
    runs, column = "", 0
    for (fg, bold, _), group in groupby(cells, lambda c: (c.fg, c.bold, c.data in BLOCKS[1:])):
        text = "".join(cell.data for cell in group)
        if text.strip():
            indent = len(text) - len(text.lstrip())
            colour = COLOURS.get(fg.removeprefix("bright"), f"#{fg}")
            look = f'fill="{colour}"' + ' font-weight="bold"' * bold
            runs += drawing(column + indent, y, text.strip(), look)
        column += len(text)
    return runs


def drawing(column: int, y: int, text: str, look: str) -> str:
    """Characters in their columns, whatever the font; blocks as the rectangle that they are."""
    x, top = MARGIN + column * CELL, TOP + y * LINE
    if text[0] in BLOCKS:
        length = sum(map(BLOCKS.index, text)) / 8 * CELL
        return f'<rect x="{x:g}" y="{top + 2}" width="{length:g}" height="16" {look}/>'
    place = f'x="{x:g}" y="{top + 15}" textLength="{len(text) * CELL:g}"'
    return f"<text {place} {look}>{escape(text, quote=False)}</text>"


def retime(screens: Iterable[tuple[float, Screen]]) -> dict[float, Screen]:
    """The screens by the second of the animation from which they are shown."""
    times, shown = zip(*screens, strict=True)
    starts = [0.0]
    for before, after in pairwise(times):
        starts.append(starts[-1] + min(after - before, PAUSE))
    speed = max(1.0, starts[-1] / SECONDS)
    slots = [int(start / speed / SLOT) for start in starts]
    return {round(slot * SLOT, 2): screen for slot, screen in zip(slots, shown, strict=True)}


def draw(screens: dict[float, Screen]) -> str:
    """The SVG: a dark window, and in it every row as often as it changes."""
    rows = [list(versions(screens, y)) for y in range(LINES)]
    last = max(y for y in range(LINES) if rows[y])
    width, height = COLUMNS * CELL + 2 * MARGIN, (last + 1) * LINE + TOP + MARGIN
    dots = [
        f'<circle cx="{MARGIN + 5 + 20 * i}" cy="24" r="6" fill="{colour}"/>'
        for i, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    ]
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve"',
            f'width="{width:g}" height="{height}" viewBox="0 0 {width:g} {height}">',
            f"<style>{STYLE}</style>",
            f'<rect x=".5" y=".5" width="{width - 1:g}" height="{height - 1}" rx="10"',
            'fill="#1c2128" stroke="#444c56"/>',
            *dots,
            *(version for versions_of_row in rows for version in versions_of_row),
            "</svg>\n",
        ]
    )


def versions(screens: dict[float, Screen], y: int) -> Iterator[str]:
    """All that a row shows, each hidden before and after its time; the last one stays."""
    groups = groupby(screens, lambda start: screens[start][y])
    shown = [(next(starts), look) for look, starts in groups]
    for (start, look), (end, _) in pairwise([*shown, (inf, "")]):
        if look and end == inf:
            yield f'<g style="animation:wait {start:g}s">{look}</g>'
        elif look:
            yield f'<g class="past" style="animation:show {end - start:.1f}s {start:g}s">{look}</g>'


if __name__ == "__main__":
    path, *lines = sys.argv[1:]
    Path(path).write_text(draw(retime(record(lines))), encoding="utf-8")
