"""What the tests of the web servers share: a server that runs for each class, and a large file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

for _name in ("uploads", "downloads", "connections", "shutdown", "untouched", "way"):
    pytest.register_assert_rewrite(f"tests.web.{_name}")

from .behaviour import pieces  # noqa: E402


@pytest.fixture(scope="session")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("web") / "large"
    with path.open("wb") as file:
        file.writelines(pieces())
    return path


@pytest.fixture(scope="session")
def large() -> str:
    """The digest of the large download."""
    digest = hashlib.sha256()
    for piece in pieces():
        digest.update(piece)
    return digest.hexdigest()
