"""The processes of a cell: the app's, what stands before it, and the clients'."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.stress.load import Measured, Plan, Sample
from benchmarks.stress.rows import Row
from retrymw.testing._process import find_program
from retrymw.testing._relay import listen

__all__ = ["App", "Clients", "app", "clients"]

_BOUND: Final = 60.0  # seconds
_TICK: Final = os.sysconf("SC_CLK_TCK")


class App:
    """An app that will answer at ``url``."""

    def __init__(self, url: str, processes: list[subprocess.Popen[str]]) -> None:
        self.url = url
        self._processes = processes
        self._pids: list[int] = []

    def get_ready(self) -> None:
        """Wait until it answers."""
        self._pids = [int(_line(process)) for process in self._processes]

    def cpu(self) -> float:
        """Seconds of CPU that its processes have had."""
        ticks = 0
        for pid in self._pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / _TICK

    def memory(self) -> float:
        """Kilobytes that its processes have in memory."""
        return sum(
            int(line.split()[1])
            for pid in self._pids
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if line.startswith("VmRSS:")
        )


class Clients:
    """Clients that wait to begin."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def get_ready(self) -> None:
        """Wait until they could begin."""
        if _line(self._process) != "ready":
            raise RuntimeError("the clients did not start")

    def go(self) -> float:
        """Let them begin; return the time (monotonic seconds)."""
        if self._process.stdin is None:
            raise RuntimeError("the clients have no standard input")
        begun = time.monotonic()
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return begun

    def measured(self) -> Measured:
        """Wait for the end; return what they have measured."""
        output, _ = self._process.communicate(timeout=2 * _BOUND)
        if self._process.returncode:
            raise RuntimeError(f"the clients ended with status {self._process.returncode}")
        told = json.loads(output)
        samples, probes = ([Sample(*item) for item in told[name]] for name in ("samples", "probes"))
        return Measured(samples, probes, told["cpu"])


@contextmanager
def app(row: Row, database: dict[str, Any], hold: float, policy: dict[str, Any]) -> Iterator[App]:
    """The app of a row, being started; gone at the end."""
    with ExitStack() as stack:
        port = _free_port()
        processes = []
        for _ in range(row.workers):
            listener = stack.enter_context(_share(port))
            told = {
                "row": row.name,
                "database": database,
                "hold": hold,
                "policy": policy,
                "descriptor": listener.fileno(),
            }
            process = stack.enter_context(
                _process(
                    [sys.executable, "-m", "benchmarks.stress.serve", json.dumps(told)],
                    pass_fds=[listener.fileno()],
                )
            )
            processes.append(process)
            listener.close()  # or connections would wait in it for a process that never accepts
        if row.front:
            port = stack.enter_context(_front(row.front, port))
        yield App(f"http://127.0.0.1:{port}", processes)


@contextmanager
def clients(plan: Plan) -> Iterator[Clients]:
    """Clients, being started; gone at the end."""
    command = [sys.executable, "-m", "benchmarks.stress.load", json.dumps(asdict(plan))]
    with _process(command, stdin=subprocess.PIPE) as process:
        yield Clients(process)


def _free_port() -> int:
    with listen() as listener:
        return int(listener.getsockname()[1])


def _share(port: int) -> socket.socket:
    """A listening socket on a port that several processes share."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(4096)
    return listener


@contextmanager
def _process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process, in a session of its own, that is killed at the end with its children."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True, **options
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _line(process: subprocess.Popen[str]) -> str:
    """The first line that a process prints."""
    if process.stdout is None:
        raise RuntimeError("the process has no standard output")
    if not select.select([process.stdout], [], [], _BOUND)[0]:
        raise TimeoutError(f"{process.args!r} says nothing for {_BOUND} s")
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args!r} did not start")
    return line.rstrip("\n")


@contextmanager
def _front(name: str, upstream: int) -> Iterator[int]:
    """HAProxy or nginx before the app; yields its port."""
    port = _free_port()
    with TemporaryDirectory() as folder:
        template = Path(__file__).with_name(f"{name}.conf").read_text()
        file = Path(folder) / f"{name}.conf"
        for word, value in (("@PORT@", port), ("@APP@", upstream), ("@FOLDER@", folder)):
            template = template.replace(word, str(value))
        file.write_text(template)
        program = str(find_program(name, name, "/usr/sbin"))
        command = {
            "haproxy": [program, "-q", "-db", "-f", str(file)],
            "nginx": [program, "-p", folder, "-e", f"{folder}/log", "-c", str(file)],
        }[name]
        with _process(command):
            _wait_for(port)
            yield port


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _BOUND
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
