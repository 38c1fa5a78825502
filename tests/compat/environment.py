"""Virtual environments with the frameworks, their own test suites, and what these ask for."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
import tarfile
import venv
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from tests.compat.suites import SUITES, Suite

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / ".venvs" / f"compat-{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class Environment:
    """A suite that can be run: its interpreter, and where its source distribution is unpacked."""

    suite: Suite
    python: Path
    source: Path

    @property
    def version(self) -> str:
        """Of the framework."""
        return metadata.version(self.suite.name)


def ready(suite: Suite) -> Environment:
    """The environment of the suite; made, when there is none for what is installed here.

    The framework is of the version that is installed beside retrymw, and so is the suite.

    Raises:
        subprocess.CalledProcessError: pip failed; it has said why.
    """
    folder = FOLDER / suite.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be making it
        stamp, wanted = folder / "ready.json", json.dumps(_wanted(suite), indent=1)
        if not stamp.exists() or stamp.read_text() != wanted:
            _make(suite, folder)
            stamp.write_text(wanted)
    return Environment(suite, folder / "venv" / "bin" / "python", _source(suite, folder))


def _frameworks() -> list[str]:
    return [f"{suite.name}=={metadata.version(suite.name)}" for suite in SUITES]


def _wanted(suite: Suite) -> list[object]:
    own = metadata.requires("retrymw")
    return [sys.version, str(ROOT), _frameworks(), own, suite.requires, suite.group]


def _source(suite: Suite, folder: Path) -> Path:
    return folder / "source" / f"{suite.name}-{metadata.version(suite.name)}"


def _make(suite: Suite, folder: Path) -> None:
    shutil.rmtree(folder / "source", ignore_errors=True)
    venv.create(folder / "venv", with_pip=True, symlinks=True, clear=True)
    python = folder / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]

    def run(*arguments: str | Path) -> None:
        subprocess.run([*pip, *arguments], cwd=folder, check=True, timeout=600)

    run("install", "--upgrade", "pip>=25.1")  # the first that knows --group
    same = folder / "constraints.txt"
    same.write_text("\n".join(_frameworks()))
    framework = f"{suite.name}=={metadata.version(suite.name)}"
    run("download", "--no-deps", "--no-binary", suite.name, "--dest", "source", framework)
    [sdist] = (folder / "source").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    group = f"{_source(suite, folder) / 'pyproject.toml'}:{suite.group}"
    needed = [framework, *suite.requires, "--editable", ROOT]
    run("install", "--group", group, "--constraint", same, *needed)
