"""A TCP proxy that breaks database connections on purpose, at the moment a test asks for."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, get_args

from retrymw.testing._relay import How, Moment, Relay, listen
from retrymw.testing._wire import STREAMS

if TYPE_CHECKING:
    from typing_extensions import Self

Protocol = Literal["mysql", "postgresql"]


@dataclass
class _Fault:
    how: How
    at: int | Moment
    times: int
    requests: Counter[Relay] = field(default_factory=Counter)


class FaultProxy:
    """A TCP proxy on 127.0.0.1 that cuts connections to a database when told to.

    Point the app at `host` and `port`, and arm faults with `cut`, `cut_all` and `refuse`. Use it as
    a context manager, or call `start` and `stop`. It runs in one thread of its own; every method
    may be called from any thread.

    - `upstream`: (host, port) of the database, IPv4. It may be set later, for new connections.
    - `protocol`: "mysql" (MariaDB too) or "postgresql"; needed to cut at a request or at a COMMIT.
      Traffic that is encrypted or compressed passes, but cannot be looked into.
    """

    host: Final = "127.0.0.1"

    def __init__(self, upstream: tuple[str, int], protocol: Protocol | None = None) -> None:
        if protocol not in STREAMS:
            raise ValueError(f"protocol must be 'mysql', 'postgresql' or None, not {protocol!r}")
        self.upstream = upstream
        self._protocol = protocol
        self._lock = threading.Condition()
        self._thread: threading.Thread | None = None
        self._listener: socket.socket | None = None
        self._port: int | None = None
        self._armed: list[_Fault] = []
        self._relays: set[Relay] = set()
        self._accepted = self._faults = self._refusals = 0
        self._refused_until = 0.0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def upstream(self) -> tuple[str, int]:
        """Where new connections are taken to: (host, port). Setting it may raise OSError."""
        return self._upstream

    @upstream.setter
    def upstream(self, upstream: tuple[str, int]) -> None:
        host, port = upstream
        self._address = (socket.gethostbyname(host), port)
        self._upstream = (host, port)

    @property
    def port(self) -> int:
        """The port to connect to; it stays the same, and is below 32768."""
        if self._port is None:
            raise RuntimeError("the proxy has no port yet: enter it with `with`, or call start()")
        return self._port

    @property
    def connections(self) -> int:
        """How many clients are connected now, the blackholed ones included."""
        with self._lock:
            return sum(relay.open for relay in self._relays)

    @property
    def accepted(self) -> int:
        """How many connections were accepted so far."""
        return self._accepted

    @property
    def faults(self) -> int:
        """How many faults armed by `cut` have struck so far."""
        return self._faults

    def wait_for_connections(self, count: int, timeout: float = 10.0) -> None:
        """Wait until `count` clients are connected; TimeoutError after `timeout` seconds."""
        with self._lock:
            if not self._lock.wait_for(lambda: self.connections == count, timeout):
                raise TimeoutError(f"{self.connections} clients, not {count}, after {timeout} s")

    def wait_for_faults(self, count: int = 1, timeout: float = 10.0) -> None:
        """Wait until `count` faults have struck since the start; TimeoutError after `timeout` s."""
        with self._lock:
            if not self._lock.wait_for(lambda: self._faults >= count, timeout):
                raise TimeoutError(f"{self._faults} of {count} faults struck within {timeout} s")

    def cut(self, how: How, at: int | Moment, *, times: int = 1) -> None:
        """Arm a fault that ends, or silences, the next `times` connections that come to `at`.

        `how`: "reset" (TCP RST), "fin" (an orderly end), or "blackhole" (nothing arrives any more
        on either side, and nothing is closed until `clear`, `cut_all` or `stop`).

        `at`, the moment:
        - "connect": when a connection is accepted;
        - a number n >= 1: at the n-th request of a connection, counted from now, when the database
          answers it; the client gets no answer. A request is what the server answers after the
          login: in MySQL a command, in PostgreSQL a simple query, a Sync, a Flush or a function
          call;
        - "before-commit": when the client sends COMMIT, which the database never gets;
        - "commit": when the database has confirmed a COMMIT, which the client never learns.

        Raises ValueError if an argument is none of these, or if the proxy has no protocol.
        """
        _check_how(how)
        _check_at(at)
        if not isinstance(times, int) or times < 1:
            raise ValueError(f"times must be a whole number from 1 up, not {times!r}")
        if at != "connect" and self._protocol is None:
            raise ValueError(f"at={at!r} needs FaultProxy(..., protocol='mysql' or 'postgresql')")
        with self._lock:
            self._armed.append(_Fault(how, at, times))

    def cut_all(self, how: How) -> int:
        """Cut every connection there is now; return how many. Not counted in `faults`."""
        _check_how(how)
        with self._lock:
            victims = [relay for relay in self._relays if relay.open]
            for relay in victims:
                relay.cut(how)
            return len(victims)

    def clear(self) -> None:
        """Disarm all faults, end `refuse_for`, and reset the blackholed connections."""
        with self._lock:
            self._armed.clear()
            for relay in self._relays:
                relay.end_silence()
            self._refused_until = 0.0
            self._open_or_shut()

    @contextmanager
    def refuse(self) -> Iterator[None]:
        """Refuse new connections (ECONNREFUSED) within the block; leave the open ones alone."""
        with self._lock:
            self._refusals += 1
            self._open_or_shut()
        try:
            yield
        finally:
            with self._lock:
                self._refusals -= 1
                self._open_or_shut()

    def refuse_for(self, seconds: float) -> None:
        """Refuse new connections (ECONNREFUSED) from now on for so many `seconds`; do not wait."""
        if not 0 < seconds < threading.TIMEOUT_MAX:
            raise ValueError(f"seconds must be above 0 and finite, not {seconds!r}")
        with self._lock:
            self._refused_until = time.monotonic() + seconds
            self._open_or_shut()
            self._wake()

    def start(self) -> None:
        """Start to accept connections. Raises OSError, or RuntimeError if already started."""
        with self._lock:
            if self._thread is not None:
                raise RuntimeError("the proxy has already been started")
            listener = listen(self._port)
            self._port = listener.getsockname()[1]
            self._selector = selectors.DefaultSelector()
            self._alarm, self._waker = socket.socketpair()
            self._selector.register(self._alarm, selectors.EVENT_READ)
            self._stopping = False
            self._thread = threading.Thread(target=self._run, name="FaultProxy", daemon=True)
            self._open(listener)
            self._thread.start()

    def stop(self) -> None:
        """Close everything and end the thread. Harmless if the proxy is not running."""
        with self._lock:
            thread, self._stopping = self._thread, True
        if thread is None:
            return
        self._wake()
        thread.join(10)
        with self._lock:
            self._thread = None
            for relay in self._relays:
                relay.close()
            self._relays.clear()
            self._shut()
            self._alarm.close()
            self._waker.close()
            self._selector.close()

    def _wake(self) -> None:
        if self._thread is not None:
            self._waker.send(b"x")

    def _open(self, listener: socket.socket) -> None:
        self._selector.register(listener, selectors.EVENT_READ)
        self._listener = listener

    def _shut(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _open_or_shut(self) -> float | None:
        """Open or close the listening socket; return in how many seconds to look again."""
        left = self._refused_until - time.monotonic()
        if self._thread is None or self._stopping:
            return None
        if self._refusals or left > 0:
            self._shut()
        elif self._listener is None:
            self._open(listen(self._port))
        return left if left > 0 else None

    def _run(self) -> None:
        while True:
            with self._lock:
                timeout = self._open_or_shut()
            ready = self._selector.select(timeout)
            with self._lock:
                if self._stopping:
                    return
                for key, events in ready:
                    if key.fileobj is self._alarm:
                        self._alarm.recv(1024)
                    elif key.fileobj is self._listener:
                        self._accept(self._listener)
                    elif key.data is not None:
                        key.data.handle(key.fileobj, events)
                self._relays = {relay for relay in self._relays if not relay.over}
                self._lock.notify_all()

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:  # gone again
            return
        self._accepted += 1
        relay = Relay(client, STREAMS[self._protocol](), self._selector, self._rule, self._struck)
        self._relays.add(relay)
        relay.connect(self._address)

    def _rule(self, relay: Relay, moment: Moment | Literal["request"]) -> How | None:
        for fault in self._armed:
            at: int | str = moment
            if moment == "request":
                fault.requests[relay] += 1
                at = fault.requests[relay]
            if fault.at == at:
                fault.times -= 1
                if not fault.times:
                    self._armed.remove(fault)
                return fault.how
        return None

    def _struck(self) -> None:
        self._faults += 1
        self._lock.notify_all()


def _check_how(how: object) -> None:
    if how not in get_args(How):
        raise ValueError(f"how must be one of {', '.join(map(repr, get_args(How)))}, not {how!r}")


def _check_at(at: object) -> None:
    valid = at >= 1 if isinstance(at, int) else at in get_args(Moment)
    if not valid or isinstance(at, bool):
        names = ", ".join(map(repr, get_args(Moment)))
        raise ValueError(f"at must be {names} or a whole number from 1 up, not {at!r}")
