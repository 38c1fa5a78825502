"""A situation: one way to fail, or to be no failure of the database, and what it counts as."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from retrymw.exceptions import Kind, Phase
from retrymw.testing import FaultProxy
from tests.servers.stacks.base import Pool, Session, Stack, Where

Verdict = tuple[Kind, Phase] | None
ServerName = Literal["mariadb", "postgresql", "sqlite", "pgbouncer"]
Need = Literal["session", "pool", "collide"]

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
        needs: the part of a stack that it is about; who has none has no such cell.
        may_pass: whether a stack may raise nothing: then `provoke` returns None.
        is_race: whether the same may be raised in several ways, by who is faster: the driver that
            sends, or what ends the connection.
    """

    name: str
    servers: tuple[ServerName, ...]
    verdict: Verdict
    provoke: Callable[[Stage], Exception | None]
    needs: Need = "session"
    may_pass: bool = False
    is_race: bool = False


Provoke = Callable[["Stage"], Exception | None]


def situation(
    name: str,
    *servers: ServerName,
    verdict: Verdict,
    into: list[Situation],
    needs: Need = "session",
    may_pass: bool = False,
    is_race: bool = False,
) -> Callable[[Provoke], Provoke]:
    """Decorate the function that provokes it, and put the situation on the list."""

    def decorate(provoke: Provoke) -> Provoke:
        race = is_race or (verdict is not None and verdict[0] == "disconnection")
        into.append(Situation(name, servers, verdict, provoke, needs, may_pass, race))
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
        other_server: starts, or gives, a session-wide server of its own by its fixture's name.
    """

    stack: Stack
    server: Any
    proxy: FaultProxy | None
    other_server: Callable[[str], Any]
    folder: Path
    sessions: list[Session] = field(default_factory=list)
    pools: list[Pool] = field(default_factory=list)
    undo: list[Callable[[], object]] = field(default_factory=list)

    @property
    def mysql(self) -> bool:
        return self.stack.server == "mariadb"

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

    def pool(self, where: Where | None = None) -> Pool:
        """The stack's pool, which is closed at the end of the cell."""
        pool = self.stack.pool(where or self.where())
        self.pools.append(pool)
        return pool

    def at_end(self, undo: Callable[..., object], *args: Any) -> None:
        """Have something undone when the cell is over; the last comes first."""
        self.undo.append(lambda: undo(*args))


def caught(function: Callable[..., object], *args: Any, **kwargs: Any) -> Exception:
    """What the call raises."""
    exception = attempted(function, *args, **kwargs)
    assert exception is not None, f"{function} did not raise"
    return exception


def attempted(function: Callable[..., object], *args: Any, **kwargs: Any) -> Exception | None:
    """What the call raises, if it does."""
    try:
        function(*args, **kwargs)
    except Exception as exc:  # noqa: BLE001  # it is looked at
        return exc
    return None


class Meanwhile:
    """A call in a thread of its own, which is waited for PATIENCE seconds at most."""

    def __init__(self, function: Callable[..., object], *args: Any) -> None:
        self._exception: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(function, *args), daemon=True)
        self._thread.start()

    def _run(self, function: Callable[..., object], *args: Any) -> None:
        self._exception = attempted(function, *args)

    def exception(self) -> Exception | None:
        """What it raised, if anything."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), f"still not over after {PATIENCE} s"
        return self._exception

    def raised(self) -> Exception:
        """What it raised."""
        exception = self.exception()
        assert exception is not None, "it did not raise"
        return exception


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until the server says so, PATIENCE seconds at most."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not so after {PATIENCE} s"
        time.sleep(0.005)
