"""What tests and the app in a server's process tell each other: datagrams, in the server's folder.

The app's side is the functions, the test's side is `Control`. An event is of one request, which has
a key of its own.
"""

from __future__ import annotations

import itertools
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 20.0  # what a test that fails waits

_FOLDER = Path.cwd()  # of the server, where it runs


def tell(key: str, event: str, detail: Any = None) -> None:
    """Tell the tests of an event."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(json.dumps([key, event, detail]).encode(), str(_FOLDER / "control"))


def wait_for_gate(key: str) -> None:
    """Wait until the test opens the request's gate; TimeoutError if it does not."""
    path = _FOLDER / f"gate-{key}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as gate:
        gate.bind(str(path))
        gate.settimeout(SECONDS)
        tell(key, "gate")
        gate.recv(1)
    path.unlink()


class Control:
    """The tests' end: what the app has told, by request."""

    _keys = itertools.count(1)

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._told: list[list[Any]] = []
        self._news = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "control"))
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._send("control", ["", "end", None])
        self._thread.join(SECONDS)
        self._socket.close()

    def new_key(self) -> str:
        """Return the key of a new request."""
        return f"k{next(self._keys)}"

    def wait(self, key: str, event: str, detail: Any = None, *, seconds: float = SECONDS) -> Any:
        """Wait for an event, with that detail if one is given; its detail.

        Raises TimeoutError, with what was told, if it does not come in so many seconds.
        """

        def find() -> list[Any]:
            return [
                [told]
                for name, what, told in self._told
                if (name, what) == (key, event) and detail in (None, told)
            ]

        with self._news:
            if not self._news.wait_for(find, seconds):
                raise TimeoutError(f"no {event} {detail} of {key} in {seconds} s: {self._told}")
            return find()[0][0]

    def comes(self, key: str, event: str, detail: Any = None, *, seconds: float) -> bool:
        """Whether an event comes within so many seconds."""
        try:
            self.wait(key, event, detail, seconds=seconds)
        except TimeoutError:
            return False
        return True

    def details(self, key: str, event: str) -> list[Any]:
        """The details of all such events that the app has told until now."""
        mark = self.new_key()
        self._send("control", [mark, "mark", None])  # behind all that is on its way
        self.wait(mark, "mark")
        return [told for name, what, told in self._told if (name, what) == (key, event)]

    def open_gate(self, key: str) -> None:
        """Let the app go on that waits at the gate of this request, or will soon."""
        self.wait(key, "gate")
        self._send(f"gate-{key}", None)

    def _send(self, name: str, value: Any) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(json.dumps(value).encode(), str(self._folder / name))

    def _read(self) -> None:
        while True:
            told = json.loads(self._socket.recv(1 << 16))
            with self._news:
                self._told.append(told)
                self._news.notify_all()
            if told[1] == "end":
                return


def hook(report: Any) -> None:
    """Tell the tests of a wait, or of how the exchange ended."""
    key = report.path.rpartition("/")[2]
    if report.outcome is None:
        tell(key, "wait", report.attempts)
    else:
        tell(key, "outcome", report.outcome)


def peak_memory() -> Callable[[], int]:
    """Begin to measure; what it returns tells the KiB that this process has grown by at most."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = _status("VmHWM")
    return lambda: _status("VmHWM") - before


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise LookupError(f"no {name} in /proc/self/status")
