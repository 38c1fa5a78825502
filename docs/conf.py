"""How Sphinx builds this documentation: `make docs`."""

import inspect
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # what is documented is this checkout

from retrymw import __version__  # noqa: E402  # found by the line above

project = "retrymw"
author = "the retrymw authors"
copyright = f"2026, {author}"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "substitution"]
myst_heading_anchors = 3


def tests_naming(guarantee: str) -> str:
    """The test files in which a guarantee is named, as Markdown; empty if there are none."""
    named = re.compile(rf"\b{guarantee}\b")
    files = [
        path for path in sorted(ROOT.glob("tests/**/test_*.py")) if named.search(path.read_text())
    ]
    return ", ".join(f"`{path.relative_to(ROOT).as_posix()}`" for path in files)


# {{ tests_G1 }} in a page: what a test proves is written in the test, and only there.
myst_substitutions = {
    f"tests_G{number}": tests_naming(f"G{number}") or "none names it yet" for number in range(1, 11)
}

default_role = "code"  # `so` in a docstring
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"

html_theme = "furo"
html_title = f"retrymw {release}"


def adapt_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Make reStructuredText of our docstrings, after napoleon has had its turn."""
    if what == "property":  # napoleon takes what precedes a colon for the type
        lines[:] = [*(inspect.getdoc(obj) or "").splitlines(), ""]
    for number in range(len(lines) - 1, 0, -1):
        before, line = lines[number - 1], lines[number]
        if line.startswith("- ") and before and not before.startswith(("- ", "  ")):
            lines.insert(number, "")  # a list may follow its sentence in ours


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", adapt_docstring, priority=600)
