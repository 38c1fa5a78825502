"""What is built is what is meant to be shipped, and it works where nothing else is installed."""

import re
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
METADATA = f"retrymw-{VERSION}.dist-info/"

pytestmark = pytest.mark.timeout(300)  # whichever test comes first builds and installs


@pytest.fixture
def shipped(wheel):
    return set(zipfile.ZipFile(wheel).namelist())


def test_wheel_holds_the_package_and_nothing_else(shipped):
    assert {"retrymw/py.typed", f"{METADATA}licenses/LICENSE"} <= shipped
    assert [name for name in shipped if not name.startswith(("retrymw/", METADATA))] == []


def test_wheel_holds_every_module(shipped):
    modules = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("retrymw/**/*.py")}
    assert {name for name in shipped if name.endswith(".py")} == modules


def test_sdist_holds_the_package_and_its_papers(dist):
    [path] = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    papers = {name for name in files if not name.startswith("retrymw/")}
    required = {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    assert required <= papers <= required | {".gitignore", "CHANGELOG.md"}


def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read(f"{METADATA}METADATA").decode())
    assert metadata["Name"] == "retrymw"
    assert metadata["Version"] == VERSION
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "MIT"
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert [re.split(r"\W", line)[0] for line in required] == ["tenacity"]
    assert {"asgi", "flask", "pymysql", "testing"} <= set(metadata.get_all("Provides-Extra"))


def test_runs_away_from_the_checkout(bare):
    assert Path(bare.run("import retrymw; print(retrymw.__file__)")).is_relative_to(bare.folder)


def test_installed_version(bare):
    code = (
        "import importlib.metadata as m, retrymw; print(m.version('retrymw'), retrymw.__version__)"
    )
    assert bare.run(code) == f"{VERSION} {VERSION}"
