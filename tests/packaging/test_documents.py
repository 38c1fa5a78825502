"""What the documents tell people to run exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", ".ci/run"])
def test_make_targets_exist(document):
    named = re.findall(r"(?:^|`|\$ )make ([a-z-]+)", (ROOT / document).read_text(), re.MULTILINE)
    assert named
    assert set(named) <= TARGETS
