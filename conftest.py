"""The documentation is executed: each document's Python blocks in turn, in one namespace."""

import pytest
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/*/*.md"],
).pytest()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-matrix", action="store_true", help="write docs/reference/drivers.md anew"
    )
    parser.addoption(
        "--write-web-servers",
        action="store_true",
        help="write docs/reference/web-servers.md anew",
    )
    parser.addoption(
        "--accounting",
        action="store_true",
        help="long accounting runs, written to docs/reference/accounting.md",
    )
