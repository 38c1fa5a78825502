"""How Sphinx builds this documentation: `make docs`."""

from importlib.metadata import version as installed

project = "retrymw"
author = "the retrymw authors"
copyright = f"2026, {author}"
version = release = installed("retrymw")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"

html_theme = "furo"
html_title = f"retrymw {release}"
