"""What the documentation says can be done: links lead somewhere, commands parse, pages run.

`.ci/run` builds the pages.
"""

import re
import shlex
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import tyro
from PIL import Image
from processes import Command, call

from ultimus_ignite import cli, handlers
from ultimus_ignite.errors import ExitCode

ROOT = Path(__file__).parent.parent
PAGES = {path.relative_to(ROOT).as_posix(): path for path in ROOT.glob("docs/*.md")}
PAGES |= {path.name: path for path in ROOT.glob("*.md")}
TEXTS = {name: path.read_text() for name, path in PAGES.items()}
KILL = "timeout --signal KILL 7 "


def blocks(name, language):
    """The blocks of one language in a page."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", TEXTS[name], flags=re.MULTILINE | re.DOTALL)
    return [text for found_language, text in found if found_language == language]


def anchors(text):
    """Where links into a page may lead, as repositories make them of headings."""
    text = re.sub(r"```(?!{eval-rst}).*?```", "", text, flags=re.DOTALL)  # "# ..." is a comment
    titles = re.findall(r"^#+ (.*)$|^(.+)\n[-=]{4,}$", text, flags=re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", (a or b).lower()) for a, b in titles)
    return {each.replace(" ", "-") for each in words}


def commands():
    """Each command line of a page, without comments."""
    for name in TEXTS:
        for language in ("bash", "sh"):
            for block in blocks(name, language):
                for line in block.replace("\\\n", " ").splitlines():
                    line = line.partition(" #")[0].removeprefix(KILL)
                    if re.match(r"(bin/)?(train-cifar|ultimus) ", line):
                        yield name, line


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_leads_somewhere(name):
    text = re.sub(r"```.*?```", "", TEXTS[name], flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        path = (PAGES[name].parent / file).resolve() if file else PAGES[name]
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path.read_text()), link


@pytest.mark.parametrize("name", TEXTS)
def test_nothing_is_left_to_be_filled_in(name):
    assert not re.search(r"@[A-Z_]+@|TODO|XXX", TEXTS[name])


def test_every_page_is_in_the_table_of_contents():
    listed = "\n".join(re.findall(r"```{toctree}\n(.*?)```", TEXTS["docs/index.md"], re.DOTALL))
    names = {f"docs/{line}.md" for line in listed.splitlines() if re.fullmatch(r"[\w-]+", line)}
    assert names == {name for name in PAGES if name.startswith("docs/")} - {"docs/index.md"}


@pytest.mark.parametrize(("name", "command"), sorted(set(commands())))
def test_every_command_parses(name, command, monkeypatch):
    class Parsed(Exception):
        pass

    def parse(*args, _parse=tyro.cli, **kwargs):
        _parse(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", parse)
    program, *arguments = shlex.split(command.removeprefix("bin/"))
    subcommand = ["train"] if program == "train-cifar" else []
    with pytest.raises(Parsed):
        cli.choose("ultimus", subcommand + arguments)


def test_commands_are_found():
    assert len({*commands()}) > 15


def test_the_handlers_page_has_every_handler():
    there = {
        name
        for name in handlers.__all__
        if name == "LRFinder" or hasattr(getattr(handlers, name), "attach")
    }
    page = TEXTS["docs/handlers.md"]
    assert set(re.findall(r"^\.\. autoclass:: (\w+)$", page, flags=re.MULTILINE)) == there
    table = re.findall(r"^\| `([A-Z]\w+)` \|", TEXTS["README.md"], flags=re.MULTILINE)
    assert set(table) == there


def test_the_errors_page_has_every_exit_code():
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", TEXTS["docs/errors.md"], flags=re.MULTILINE)
    assert rows == [(str(code.value), code.meaning) for code in ExitCode]


def test_the_errors_page_quotes_what_is_said():
    files = [*ROOT.glob("ultimus_ignite/**/*.py"), *ROOT.glob("handlers/**/*.py")]
    said = "\n".join(path.read_text() for path in files)
    said = re.sub(r'"\n\s*f?"', "", said)  # a sentence in several literals
    quotes = re.findall(r"^\| `([^`]+)` \|", TEXTS["docs/errors.md"], flags=re.MULTILINE)
    assert len(quotes) > 5
    for quote in quotes:
        pattern = ".*".join(map(re.escape, quote.split("...")))
        assert re.search(pattern, said), quote


def test_the_five_minutes_with_pictures(tmp_path):
    Image.new("L", (28, 28)).save(tmp_path / "seven.png")
    first, killed, resumed, compare, *rest = "".join(blocks("docs/start.md", "bash")).splitlines()
    run(tmp_path, first)
    command = Command(*shlex.split(killed.removeprefix(KILL)), cwd=tmp_path)
    command.wait_for("EPOCH: 3")
    command.kill()
    assert not list(tmp_path.glob("runs/killed/model.safetensors"))
    run(tmp_path, resumed)
    program, *files = compare.split()
    assert program == "sha256sum"
    assert len({sha256((tmp_path / file).read_bytes()).digest() for file in files}) == 1
    for line in rest:
        run(tmp_path, line)
    assert (tmp_path / "report.html").exists()


def run(folder, line):
    answer = call(*shlex.split(line), cwd=folder)
    assert answer.returncode == 0, answer.stderr


def test_the_five_minutes_with_a_script(tmp_path, monkeypatch):
    script = blocks("docs/start.md", "python")[:3]
    weights = []
    for place, ends_at in (("unbroken", None), ("killed", 20)):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        if ends_at:
            with pytest.raises(RuntimeError, match="power cut"):
                exec("\n".join([*script[:2], POWER_CUT, script[2]]), {"ends_at": ends_at})
        names = {}
        exec("\n".join(script), names)
        assert names["trainer"].state.iteration == 48
        weights.append(names["model"].state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


POWER_CUT = """
from ignite.engine import Events

@trainer.on(Events.ITERATION_COMPLETED(once=ends_at))
def cut():
    raise RuntimeError("power cut")
"""


def test_the_five_minutes_with_a_layer():
    names = {}
    exec(blocks("docs/start.md", "python")[3], names)
    assert names["attentive_resnet"]()(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_script_is_python(name):
    for script in blocks(name, "python"):
        compile(script, name, "exec")
