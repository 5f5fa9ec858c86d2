"""Sphinx configuration: `sphinx-build -W -b html docs site`, without a network.

With `-t online`, names of Python, torch and Ignite become links to their documentation.
"""

from importlib import metadata

project = "ultimus-ignite"
release = metadata.version("ultimus-ignite")
html_title = f"{project} {release}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
]
html_theme = "furo"
html_show_copyright = False  # LICENSE has it
myst_heading_anchors = 3  # links to headings, as repositories show them
myst_enable_extensions = ["colon_fence"]

default_role = "any"
suppress_warnings = ["ref.any"]  # offline, names of other packages stay plain text
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings have units and ranges
napoleon_use_rtype = False

if tags.has("online"):  # type: ignore[name-defined]  # noqa: F821
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "ignite": ("https://docs.pytorch.org/ignite", None),
    }

_fields: dict[str, list[str]] = {}


def _hide_field(app, what, name, obj, options, lines):  # type: ignore[no-untyped-def]
    """Keep a field's sentence from napoleon, which takes what stands before a colon for a type."""
    if what == "attribute":
        _fields[name] = lines[:]
        lines.clear()


def _show_field(app, what, name, obj, options, lines):  # type: ignore[no-untyped-def]
    lines[:] = _fields.pop(name, lines)


def setup(app):  # type: ignore[no-untyped-def]
    app.connect("autodoc-process-docstring", _hide_field, priority=400)
    app.connect("autodoc-process-docstring", _show_field, priority=600)
