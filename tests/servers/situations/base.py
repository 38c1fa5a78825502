"""A situation: one way to fail, or to be no failure of the database's, and what it has to count as."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from retrymw.exceptions import Kind, Phase
from retrymw.testing import FaultProxy
from tests.servers.stacks.base import Session, Stack, Where

Verdict = tuple[Kind, Phase] | None
ServerName = Literal["mariadb", "postgresql", "sqlite", "pgbouncer"]

PATIENCE = 20.0
"""Seconds after which a step of a cell counts as hanging."""


@dataclass(frozen=True)
class Situation:
    """One way to fail.

    Attributes:
        name: as on the page.
        servers: those it can be provoked on.
        verdict: what classify has to say: (kind, phase), or None.
        provoke: does it to a stack, and returns what the stack raised.
    """

    name: str
    servers: tuple[ServerName, ...]
    verdict: Verdict
    provoke: Callable[[Stage], Exception]


def situation(
    name: str,
    *servers: ServerName,
    verdict: Verdict,
    into: list[Situation],
) -> Callable[[Callable[[Stage], Exception]], Callable[[Stage], Exception]]:
    """Decorate the function that provokes it, and put the situation on the list."""

    def decorate(provoke: Callable[[Stage], Exception]) -> Callable[[Stage], Exception]:
        into.append(Situation(name, servers, verdict, provoke))
        return provoke

    return decorate


@dataclass
class Stage:
    """Where a cell is played: the stack, a healthy server with the table ``t``, and a proxy.

    The table is ``t (a INT PRIMARY KEY, b INT)`` with the rows (1, 0) and (2, 0).

    Attributes:
        stack: the driver or layer.
        server: as started by the fixtures (retrymw.testing.servers); for SQLite a folder.
        proxy: a fault proxy in front of it; None for SQLite.
    """

    stack: Stack
    server: Any
    proxy: FaultProxy | None
    sessions: list[Session] = field(default_factory=list)
    undo: list[Callable[[], object]] = field(default_factory=list)

    def where(self, **changes: Any) -> Where:
        """The server's address."""
        return Where(**({"host": self.server.host, "port": self.server.port} | changes))

    def through_proxy(self, **changes: Any) -> Where:
        """The proxy's address."""
        assert self.proxy is not None
        return Where(**({"host": self.proxy.host, "port": self.proxy.port} | changes))

    def connect(self, where: Where | None = None, *, autocommit: bool = False) -> Session:
        """A session, which is thrown away at the end of the cell."""
        session = self.stack.connect(where or self.where(), autocommit=autocommit)
        self.sessions.append(session)
        return session

    def at_end(self, undo: Callable[[], object]) -> None:
        """Have something undone when the cell is over; the last comes first."""
        self.undo.append(undo)


def caught(function: Callable[..., object], *args: Any, **kwargs: Any) -> Exception:
    """What the call raises."""
    try:
        function(*args, **kwargs)
    except Exception as exc:  # noqa: BLE001  # it is looked at
        return exc
    raise AssertionError(f"{function} did not raise")


class Meanwhile:
    """A call in a thread of its own; ``raised()`` waits for it, PATIENCE seconds at most."""

    def __init__(self, function: Callable[..., object], *args: Any) -> None:
        self._exception: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(function, *args), daemon=True)
        self._thread.start()

    def _run(self, function: Callable[..., object], *args: Any) -> None:
        try:
            function(*args)
        except Exception as exc:  # noqa: BLE001  # it is looked at
            self._exception = exc

    def exception(self) -> Exception | None:
        """What it raised, if anything."""
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            raise AssertionError(f"still not over after {PATIENCE} s")
        return self._exception

    def raised(self) -> Exception:
        """What it raised."""
        exception = self.exception()
        assert exception is not None, "it did not raise"
        return exception
