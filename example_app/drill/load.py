"""The customers: they look, order and restock, and write down every answer."""

from __future__ import annotations

import random
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Literal

import anyio
import httpx

Verdict = Literal["2xx", "500", "503", "503, outcome unknown", "no answer", "other"]

# What customers of retrymw have to live with: where a COMMIT was sent and its answer never came,
# the request is not repeated, because that could do it twice, and the 503 says so.
KEPT: Final[frozenset[Verdict]] = frozenset({"2xx", "503, outcome unknown"})
THINKING: Final = 0.08  # seconds between an answer and the next request, on average


@dataclass
class Tally:
    """What the customers of one side wrote down.

    ``phase`` is what they live through; ``run`` begins the references of their orders.
    """

    run: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    phase: str = "starting"
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    replays: int = 0
    slowest: float = 0.0
    acknowledged: set[str] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)

    def write_down(self, request: httpx.Request, answer: httpx.Response | Exception) -> None:
        """Add an answer, or the lack of one."""
        verdict = _judge(request, answer)
        self.verdicts[verdict] += 1
        how = repr(answer)
        if isinstance(answer, httpx.Response):
            how = f"Retry-Outcome: {answer.headers.get('Retry-Outcome')}"
            self.replays += int(answer.headers.get("Retry-Attempts", "1")) - 1
            if answer.status_code == 201:
                self.acknowledged.add(answer.json()["reference"])
        if verdict not in KEPT:
            self.lost.append(
                f"{request.method} {request.url.path}, while {self.phase}: {verdict} ({how})"
            )


class Load:
    """``clients`` customers at a time, each with one request at a time."""

    def __init__(
        self, http: httpx.AsyncClient, skus: list[str], clients: int, tally: Tally
    ) -> None:
        self.tally = tally
        self._http = http
        self._skus = skus
        self._clients = clients
        self._pending: set[anyio.Event] = set()
        self._closing = False
        self._random = random.Random()  # noqa: S311  # whims, not secrets

    async def run(self) -> None:
        """Let them in, until ``close``."""
        async with anyio.create_task_group() as customers:
            for _ in range(self._clients):
                customers.start_soon(self._customer)

    async def settle(self) -> None:
        """Wait until every request that is on its way now has been answered."""
        for answered in list(self._pending):
            await answered.wait()

    def close(self) -> None:
        """Let no one start another request."""
        self._closing = True

    async def _customer(self) -> None:
        while not self._closing:
            await anyio.sleep(self._random.uniform(0, 2 * THINKING))
            answered = anyio.Event()
            self._pending.add(answered)
            try:
                await self._visit()
            finally:
                self._pending.discard(answered)
                answered.set()

    async def _visit(self) -> None:
        request = self._request()
        started = time.monotonic()
        try:
            answer: httpx.Response | Exception = await self._http.send(request)
        except httpx.TransportError as error:
            answer = error
        self.tally.slowest = max(self.tally.slowest, time.monotonic() - started)
        self.tally.write_down(request, answer)

    def _request(self) -> httpx.Request:
        sku, whim = self._random.choice(self._skus), self._random.random()
        if whim < 0.1:
            return self._http.build_request("GET", "/products")
        if whim < 0.6:
            return self._http.build_request("GET", f"/products/{sku}")
        if whim < 0.7:
            stock = {"stock": self._random.randrange(500, 1000)}
            return self._http.build_request("PUT", f"/products/{sku}/stock", json=stock)
        reference = f"{self.tally.run}-{uuid.uuid4().hex[:12]}"
        order = {"reference": reference, "sku": sku, "quantity": 1}
        return self._http.build_request("POST", "/orders", json=order)


def _judge(request: httpx.Request, answer: httpx.Response | Exception) -> Verdict:
    if isinstance(answer, Exception):
        return "no answer"
    if answer.is_success:
        return "2xx"
    if answer.status_code == 503:
        outcome = answer.headers.get("Retry-Outcome")
        # Reading twice harms nobody: no excuse there.
        if request.method != "GET" and outcome in ("unknown", "committed"):
            return "503, outcome unknown"
        return "503"
    return "500" if answer.status_code == 500 else "other"
