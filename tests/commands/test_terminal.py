"""`retrymw wait` in a terminal: one line that is rewritten, and nothing left behind."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.commands.helpers import BOUND, MYSQL, url_of

CODE = (
    "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "from retrymw.commands.wait import wait; wait(prog_name='retrymw wait')"
)
CLEAR = "\r\x1b[K"


class Terminal:
    """A process, and the terminal that it has to itself."""

    def __init__(self, process, master):
        self.process = process
        self.shown = ""
        self._master = master

    def press(self, key: bytes) -> None:
        os.write(self._master, key)

    def wait_for(self, pattern: str) -> None:
        """Read until that is shown."""
        deadline = time.monotonic() + BOUND
        while not re.search(pattern, self.shown):
            assert self._read(deadline), f"it ended, and had shown {self.shown!r}"

    def wait(self) -> int:
        """Read until the process ends."""
        deadline = time.monotonic() + BOUND
        while self._read(deadline):
            pass
        return self.process.wait(BOUND)

    def _read(self, deadline: float) -> bool:
        left = deadline - time.monotonic()
        ready, _, _ = select.select([self._master], [], [], max(0, left))
        assert ready, f"nothing more after {self.shown!r}"
        try:
            said = os.read(self._master, 4096).decode()
        except OSError:  # Linux: nobody has the other end open any more
            return False
        self.shown += said
        return bool(said)


@contextmanager
def terminal(*arguments: str, columns: int = 200) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-c", CODE, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=os.environ | {"COLUMNS": str(columns)},
        ) as process:
            os.close(slave)
            try:
                yield Terminal(process, master)
            finally:
                process.kill()
    finally:
        os.close(master)


def test_live_line(mariadb):
    """While it waits there is one line, rewritten; in the end the line that says how it went."""
    url = url_of(mariadb, MYSQL[0])
    with mariadb.fill(), terminal(url) as screen:
        screen.wait_for(r"attempt 2, next in \d\.\d s, \d+ s left: full: Too many connections \(")
        mariadb.kill_connections()
        assert screen.wait() == 0
    assert screen.shown.startswith(f"{CLEAR}attempt 1: mysql+pymysql://app@127.0.0.1:")
    *rewritten, last = screen.shown.split(CLEAR)
    assert all("\n" not in line for line in rewritten)
    assert re.fullmatch(r"mysql\S+ let us in after \d+\.\d s \(\d+ attempts\)", last.strip())


def test_narrow_terminal():
    """The line is cut to fit, or it could not be rewritten."""
    with terminal("mysql+pymysql://app:app@127.0.0.1:1/app", columns=40) as screen:
        screen.wait_for("attempt 2")
        screen.press(b"\x03")
        assert screen.wait() == 130
    assert max(len(line.removesuffix("^C")) for line in screen.shown.split(CLEAR)) == 39


def test_ctrl_c():
    """Ctrl-C ends it, status 130; the line is gone and the terminal as it was."""
    with terminal("postgresql+psycopg2://app:app@127.0.0.1:1/app") as screen:
        screen.wait_for("attempt 1, next in .* s left: not there yet")
        screen.press(b"\x03")
        assert screen.wait() == 130
    assert screen.shown.endswith(CLEAR)
    assert "Traceback" not in screen.shown


def test_failure_is_told_below():
    """When it gives up the line is gone, and the reason stands there."""
    with terminal("mysql+pymysql://app:app@127.0.0.1:1/app", "--timeout", "0.3") as screen:
        assert screen.wait() == 1
    last = screen.shown.split(CLEAR)[-1]
    assert last.startswith("Error: mysql+pymysql://app@127.0.0.1:1/app did not let us in within")


def test_command_has_the_terminal(mariadb):
    """The command that follows finds a clean line, and the terminal is its."""
    line = ["--", sys.executable, "-c", "import sys; print('tty', sys.stdin.isatty())"]
    with terminal(url_of(mariadb, MYSQL[0]), *line) as screen:
        assert screen.wait() == 0
    assert screen.shown.splitlines()[-1] == "tty True"
