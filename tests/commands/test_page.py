"""What the page about the commands shows is what they print."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from retrymw.commands.doctor import doctor
from retrymw.commands.explain import explain
from retrymw.commands.wait import wait
from tests.commands.helpers import BOUND, MYSQL, started, url_of

PAGE = (Path(__file__).parents[2] / "docs/reference/commands.md").read_text()
COMMANDS = {"wait": wait, "doctor": doctor, "explain": explain}


def shown(command):
    """The command line that the page has for it, and what it shows below."""
    block = re.search(rf"\$ retrymw {command}([^\n]*)\n(.*?)```", PAGE, re.DOTALL)
    return block[1].split(), block[2].rstrip()


def masked(text, server=None):
    """Without what is different each time."""
    if server is not None:
        text = text.replace(f"127.0.0.1:{server.port}", "db")
    text = re.sub(r"(MariaDB) [\w.+~-]+,", r"\1,", text)
    changing = "Threads_connected|Max_used_connections|Aborted_connects|Uptime"
    text = re.sub(rf"({changing}) +\d+", r"\1", text)
    text = re.sub(r"attempt \d+|\d+ attempts", "N attempts", text)
    return re.sub(r"(next in|after) \d+\.\d s|\d+ s left", r"\1 N s", text)


def test_explain():
    """The page shows what explain prints."""
    arguments, text = shown("explain")
    assert CliRunner().invoke(explain, arguments).output.rstrip() == text


def test_doctor(mariadb):
    """The page shows what doctor prints of such a server."""
    arguments, text = shown("doctor")
    mariadb.execute("FLUSH STATUS")
    environment = {"DATABASE_URL": url_of(mariadb, MYSQL[0])}
    output = CliRunner().invoke(doctor, arguments, env=environment).output
    told = re.sub(r"\n\nNOTICE.*?(?=\n\n[A-Z]|\Z)", "", output.rstrip(), flags=re.DOTALL)
    assert masked(told, mariadb) == masked(text)


def test_wait(mariadb):
    """The page shows what wait says while there is no connection, and once there is one."""
    arguments, text = shown("wait")
    with mariadb.fill(), started("wait", url_of(mariadb, MYSQL[0]), *arguments) as process:
        said = [process.stderr.readline(), process.stderr.readline()]
        mariadb.kill_connections()
        _, rest = process.communicate(timeout=BOUND)
    lines = [masked(line, mariadb) for line in [*said, *rest.splitlines()]]
    assert {line.strip() for line in lines} == {masked(line) for line in text.splitlines()}


@pytest.mark.parametrize("command", COMMANDS)
def test_options_exist(command):
    """Every option that the page names is one."""
    section = re.search(rf"^## {command}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)[1]
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", section))
    assert named <= {name for option in COMMANDS[command].params for name in option.opts}
