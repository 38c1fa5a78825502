"""The processes of a private server: who they run as, and how they are halted and ended."""

from __future__ import annotations

import os
import pwd
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_BOUND: Final = 10.0  # seconds


def find_program(name: str, package: str, *folders: str | Path) -> Path:
    """Find a program in the PATH or in `folders`; FileNotFoundError says how to get it."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, folders)])
    if found := shutil.which(name, path=path):
        return Path(found).resolve()
    raise FileNotFoundError(f"there is no {name} in {path}; try: apt-get install {package}")


def account(name: str) -> dict[str, Any]:
    """Return what makes `subprocess` run something as user `name`, or nobody, if we are root.

    Database servers refuse to run as root. If we are somebody else they run as we do.
    """
    if os.geteuid():
        return {}
    for candidate in (name, "nobody"):
        try:
            user = pwd.getpwnam(candidate)
        except KeyError:
            continue
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise RuntimeError(f"root needs a user for the server to run as; try: useradd -r {name}")


class ProcessTree:
    """A process and its children, with their output in the file `log` in `folder`."""

    def __init__(self, command: Sequence[str], folder: Path, account: Mapping[str, Any]) -> None:
        self._paused = False
        self._alive, inherited = os.pipe()  # at its end when the last process has ended
        try:
            with (folder / "log").open("ab") as log:
                self._main = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=folder,
                    pass_fds=[inherited],
                    start_new_session=True,
                    **account,
                )
        except BaseException:
            os.close(self._alive)
            raise
        finally:
            os.close(inherited)

    @property
    def running(self) -> bool:
        """Whether the main process lives, be it paused."""
        return self._main.poll() is None

    @property
    def responsive(self) -> bool:
        """Whether the main process lives and is not paused."""
        return self.running and not self._paused

    def stop(self, number: signal.Signals, timeout: float) -> None:
        """Send the main process a signal, or kill all if it has not ended in `timeout` seconds."""
        self.resume()
        if self.running:
            self._main.send_signal(number)
            try:
                self._main.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                return
        self._reap()

    def kill(self) -> None:
        """Kill all processes, and wait until they are gone."""
        if self.running:
            for child in self._freeze():
                os.kill(child, signal.SIGKILL)
            self._main.kill()
        self._reap()

    def pause(self) -> None:
        """Halt all processes."""
        for child in self._freeze():
            os.kill(child, signal.SIGSTOP)

    def resume(self) -> None:
        """Let all processes go on, if they are paused."""
        if self._paused:
            for child in self._freeze():
                os.kill(child, signal.SIGCONT)
            self._main.send_signal(signal.SIGCONT)
            self._paused = False

    def _freeze(self) -> list[int]:
        """Halt the main process, so that its children stay the same, and return these."""
        pid = self._main.pid
        if not self._paused:
            os.kill(pid, signal.SIGSTOP)
            self._wait_halted(pid)
            self._paused = True
        children = Path(f"/proc/{pid}/task/{pid}/children")
        if children.exists():
            return [int(child) for child in children.read_text().split()]
        command = ["pgrep", "-P", str(pid)]
        found = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        return [int(child) for child in found.stdout.split()]

    def _wait_halted(self, pid: int) -> None:
        """Wait until the kernel says so, or for a second: not every one tells reliably."""
        deadline = time.monotonic() + 1
        while os.waitpid(pid, os.WUNTRACED | os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                return
            time.sleep(0.001)

    def _reap(self) -> None:
        self._main.wait(_BOUND)
        ended = select.poll()
        ended.register(self._alive, select.POLLIN)
        if not ended.poll(_BOUND * 1000):
            raise TimeoutError(f"processes of {self._main.args!r} do not end")
        os.close(self._alive)
