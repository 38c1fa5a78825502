"""The distributions, built once, and installed far from the checkout."""

import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Interpreter:
    """A Python with retrymw within its reach, started in a given folder."""

    command: tuple[str | Path, ...]
    folder: Path

    def run(self, code: str) -> str:
        """What the code prints in a fresh process; warnings are errors there too."""
        command = [*self.command, "-W", "error", "-c", code]
        done = subprocess.run(
            command, cwd=self.folder, check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout.strip()

    def modules_after(self, statement: str) -> set[str]:
        """All modules loaded once the statement has run."""
        return set(self.run(f"import sys; {statement}; print(*sys.modules)").split())


def install(requirement: str, folder: Path) -> Interpreter:
    venv.create(folder / "venv", with_pip=True, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", requirement], check=True)
    return Interpreter((python, "-I"), folder)


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True)
    return folder


@pytest.fixture(scope="session")
def wheel(dist: Path) -> Path:
    [path] = dist.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Interpreter:
    """The wheel, installed without extras."""
    return install(f"retrymw @ {wheel.as_uri()}", tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="session")
def with_asgi(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Interpreter:
    """The wheel, installed with the extra `asgi` only."""
    return install(f"retrymw[asgi] @ {wheel.as_uri()}", tmp_path_factory.mktemp("asgi"))


@pytest.fixture(scope="session")
def with_everything() -> Interpreter:
    """The interpreter of the tests: whatever may be loaded by mistake is there to be loaded."""
    return Interpreter((sys.executable,), ROOT)
