"""The rooms of the house, and which way their imports run."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"ultimus_ignite.handlers": ROOT / "handlers", "ultimus_ignite": ROOT / "ultimus_ignite"}

EXCEPTIONS = ("__init__", "lr_finder")  # a range test runs the trainer's step, without its events
OWN_OBJECTS = {("checkpointer", "other"), ("graceful_stop", "stop"), ("errors", "member")}


def modules():
    """Every module of the project, with its file."""
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            yield ".".join(part for part in parts if part != "__init__"), path


FILES = dict(modules())


def imports(name):
    """The modules that one names in an import, anywhere in its text, also for types alone."""
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from [module for module in inner if module in FILES] or [node.module]


ARROWS = {name: {module for module in imports(name) if module in FILES} for name in FILES}


def inside(name, place):
    return f"{name}.".startswith(f"ultimus_ignite.{place}.")


def test_every_file_is_seen():
    assert {"ultimus_ignite.cli", "ultimus_ignite.handlers.support.outputs"} < FILES.keys()
    assert sum(map(len, ARROWS.values())) > 100


def test_there_is_no_circle():
    remaining = {name: set(targets) for name, targets in ARROWS.items()}
    while leaves := {name for name, targets in remaining.items() if not targets}:
        remaining = {n: targets - leaves for n, targets in remaining.items() if n not in leaves}
    assert not remaining, f"these import each other: {sorted(remaining)}"


@pytest.mark.parametrize("place", ["handlers", "modules"])
def test_what_strangers_use_imports_nothing_of_ours(place):
    for name in filter(lambda name: inside(name, place), FILES):
        for target in imports(name):
            assert inside(target, place) or not target.startswith("ultimus_ignite"), (name, target)


def test_no_subcommand_imports_another():
    shared = "ultimus_ignite.commands.arguments"
    for name in filter(lambda name: inside(name, "commands"), FILES):
        others = {target for target in ARROWS[name] if inside(target, "commands")}
        assert others <= {shared}, name
        assert name != shared or not others


def test_nothing_points_up():
    for name, targets in ARROWS.items():
        for target in targets:
            assert target != "ultimus_ignite.cli", f"{name} imports the command line"
            if inside(target, "commands"):
                assert inside(name, "commands"), f"{name} imports a subcommand"
            if target == "ultimus_ignite.run":
                assert name == "ultimus_ignite.training", f"{name} imports the run"
            if target == "ultimus_ignite.training":
                is_top = name == "ultimus_ignite"  # which offers it to users
                assert is_top or inside(name, "commands"), f"{name} imports the training"
            if inside(target, "results"):
                above = ("results", "commands", "training")
                is_above = name == "ultimus_ignite" or any(inside(name, place) for place in above)
                assert is_above, f"{name} imports what comes after training"


def test_what_attaches_stands_above_what_serves_it():
    attachable = "ultimus_ignite.handlers.support.attachable"
    for name, path in FILES.items():
        if inside(name, "handlers"):
            classes = [n for n in ast.walk(ast.parse(path.read_text())) if hasattr(n, "bases")]
            attaches = any("Attachable" in [ast.unparse(b) for b in c.bases] for c in classes)
            is_above = path.parent == ROOT / "handlers" and path.stem not in EXCEPTIONS
            assert attaches == is_above, name
    assert attachable in FILES


def test_private_names_of_others_stand_in_one_file():
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and re.match("_(?!_)", node.attr):
                owner = ast.unparse(node.value)
                is_own = owner in ("self", "cls") or (path.stem, owner) in OWN_OBJECTS
                assert is_own or name.endswith(".private_names"), f"{name}: {owner}.{node.attr}"


def test_matplotlib_is_known_to_one_file():
    users = {name for name in FILES if any(t.startswith("matplotlib") for t in imports(name))}
    assert users == {"ultimus_ignite.handlers.support.figures"}
