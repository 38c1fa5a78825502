"""Every order accounted for, while the database is cut, killed and refused at random."""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import Final, Literal

import anyio
import httpx
import pytest
import tenacity

from retrymw import RetryPolicy, rollback_safe
from retrymw.classify import classify
from retrymw.testing.conformance._stage import Conformance, Endpoint, Stage

__all__ = ["AccountingConformance", "Accounts"]

_EVERY_SECONDS: Final = 0.05
_POLICY: Final = RetryPolicy(
    max_replays=50,
    wait=tenacity.wait_random(0.01, 0.1),
    deadline=10,
    max_waiting=1000,
)


@dataclass
class Accounts:
    """What became of the orders of one run.

    Attributes:
        requests: how many orders were sent.
        acknowledged: how many were answered with 200.
        replays: how many attempts there were beyond the first ones.
        unknown: how many were answered with an outcome of ``unknown`` or ``committed``.
        refused: how many were answered with any other 503.
        faults: how many connections were broken on purpose.
        duplicates: orders that are stored more than once. Must be 0.
        lost: orders that were acknowledged and are not stored. Must be 0.
        unreported: orders that were refused, with a promise that nothing was done, and are stored.
            Must be 0.
        leaked: connections that are held when all is over. Must be 0.
    """

    requests: int = 0
    acknowledged: int = 0
    replays: int = 0
    unknown: int = 0
    refused: int = 0
    faults: int = 0
    duplicates: int = 0
    lost: int = 0
    unreported: int = 0
    leaked: int = 0
    promised: set[str] = field(default_factory=set, repr=False)
    denied: set[str] = field(default_factory=set, repr=False)

    def note(self, order: str, response: httpx.Response) -> None:
        """One order was answered."""
        self.requests += 1
        self.replays += int(response.headers.get("retry-attempts", 1)) - 1
        if response.status_code == 200:
            self.acknowledged += 1
            self.promised.add(order)
        elif response.headers["retry-outcome"] in ("unknown", "committed"):
            self.unknown += 1
        else:
            self.refused += 1
            self.denied.add(order)

    def settle(self, stored: Counter[str]) -> None:
        """Compare what was said with what is stored."""
        self.duplicates = sum(count > 1 for count in stored.values())
        self.lost = len(self.promised - stored.keys())
        self.unreported = len(self.denied & stored.keys())

    @property
    def row(self) -> dict[str, int]:
        """The numbers, by name."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, int)}


class AccountingConformance(Conformance):
    """Many clients place orders, and every 50 ms a connection is reset, killed, or cut after its
    COMMIT: each order is stored once, or refused and not stored, or reported as unknown (G4).

    No fault is armed before the one before has struck: while nobody gets in they would pile up,
    and then strike each and every COMMIT.

    Attributes:
        clients: how many at once.
        seconds: for how long.
        connections: how many the subject is to have room for.
        accounts: where the results go, by the test's name.
    """

    clients = 20
    seconds = 2.0
    connections = 10
    accounts: dict[str, Accounts] = {}  # noqa: RUF012  # shared by all on purpose

    @pytest.fixture
    def size(self) -> int:
        """Room for more than in the other tests."""
        return self.connections

    def test_every_order_is_accounted_for(
        self, stage: Stage, request: pytest.FixtureRequest
    ) -> None:
        """G1, G4: what was acknowledged is stored once, what was refused is not, none leaks."""
        accounts = self.accounts[request.node.nodeid] = Accounts()
        stage.server.execute("CREATE TABLE app.orders (name VARCHAR(50))")
        if stage.server.protocol == "postgresql":
            stage.server.execute("ALTER TABLE app.orders OWNER TO app")
        try:
            until = monotonic() + self.seconds
            with _chaos(stage, accounts, until):
                _play(stage, accounts, self.clients, until)
            with suppress(TimeoutError, AssertionError):
                stage.wait_until_free()
            accounts.leaked = stage.in_use
            rows = stage.server.execute("SELECT name FROM app.orders")
        finally:
            stage.server.kill_connections()
            stage.server.execute("DROP TABLE app.orders")
        accounts.settle(Counter(name for (name,) in rows))
        assert accounts.acknowledged > 0
        assert accounts.faults > 0
        assert (accounts.duplicates, accounts.lost, accounts.unreported) == (0, 0, 0)
        assert accounts.leaked == 0


def _play(stage: Stage, accounts: Accounts, clients: int, until: float) -> None:
    """Each client places one order after the other."""
    numbers = itertools.count()
    lock = threading.Lock()

    def order() -> tuple[str, Endpoint]:
        name = f"order {next(numbers)}"

        sql = f"INSERT INTO orders VALUES ('{name}')"

        def place() -> None:
            stage.subject.execute("SELECT 1")
            stage.subject.execute(sql)
            stage.subject.commit()

        @rollback_safe
        async def endpoint() -> None:
            if stage.subject.is_async:
                await stage.execute("SELECT 1")
                await stage.execute(sql)
                await stage.commit()
            else:  # in one thread, as frameworks do it, or those that wait keep the others out
                await stage.call(place)

        return name, endpoint

    async def task() -> None:
        while monotonic() < until:
            name, endpoint = order()
            response = await stage.asgi(endpoint, "POST", {"policy": _POLICY})
            accounts.note(name, response)

    async def tasks() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(clients):
                group.start_soon(task)

    def thread(_: int) -> None:
        while monotonic() < until:
            name, endpoint = order()
            response = stage.request(endpoint, "POST", policy=_POLICY)
            with lock:
                accounts.note(name, response)

    if stage.shell == "asgi":
        stage.portal.call(tasks)
    else:
        with ThreadPoolExecutor(clients) as threads:
            list(threads.map(thread, range(clients)))


@contextmanager
def _chaos(stage: Stage, accounts: Accounts, until: float) -> Iterator[None]:
    """Break a connection every 50 ms, in a way that is picked at random; from `until` on, none."""
    over = threading.Event()
    errors: list[Exception] = []
    armed = stage.proxy.faults

    def cut(at: int | Literal["commit"]) -> None:
        nonlocal armed
        if stage.proxy.faults == armed:  # all of them have struck
            armed += 1
            stage.proxy.cut("reset", at)

    def kill() -> None:
        try:
            stage.server.kill_connections(1)
        except Exception as exc:
            failure = classify(exc)
            if failure is None or failure.kind != "too-many-connections":
                raise
            return  # a server that lets nobody in is fault enough
        accounts.faults += 1

    resets = [lambda: cut(1)] * 2  # some strike a COMMIT
    ways: list[Callable[[], None]] = [*resets, lambda: cut("commit"), kill]

    def break_many() -> None:
        try:
            while not over.wait(_EVERY_SECONDS) and monotonic() < until:
                random.choice(ways)()
        except Exception as error:  # noqa: BLE001  # it is raised below
            errors.append(error)
        stage.proxy.clear()  # what is under way ends in peace

    thread = threading.Thread(target=break_many)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        accounts.faults += stage.proxy.faults
    if errors:
        raise errors[0]
