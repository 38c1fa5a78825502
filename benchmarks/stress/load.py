"""The clients, in a process of their own: ``python -m benchmarks.stress.load JSON``.

It says ``ready``, begins when a line comes in, and prints what it has measured.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import aiohttp
import uvloop

__all__ = ["PATIENCE", "Measured", "Plan", "Sample"]

PATIENCE: Final = 30.0
"""Seconds after which a client gives up."""

THINK: Final = 0.5
"""Seconds a client waits before it asks again after a failure."""


@dataclass(frozen=True)
class Plan:
    """What the clients do.

    Attributes:
        url: where the app is.
        seconds: how long requests are begun; then those under way are waited for.
        clients: that many ask again as soon as they are answered (a closed loop).
        rate: requests a second that are begun whatever becomes of them (an open loop).
        method, path: of the requests; ``{}`` in the path becomes the number of the request.
        probes: requests of ``/static`` a second, an open loop.
        grace: seconds for which requests under way are waited for in the end.
        connected: every client has its connection before it begins.
        spread: seconds in which the clients of a closed loop begin, one after the other.
        lead: seconds for which only ``/static`` is asked for at first.
    """

    url: str
    seconds: float
    clients: int = 0
    rate: float = 0
    method: str = "GET"
    path: str = "/products"
    probes: float = 20
    grace: float = PATIENCE
    connected: bool = False
    spread: float = 0
    lead: float = 0


class Sample(NamedTuple):
    """A request: when it was begun and over (monotonic seconds), what came back, and its number.

    ``status`` is 0 if nothing came; ``outcome`` is the header ``Retry-Outcome``.
    """

    begun: float
    over: float
    status: int
    outcome: str
    number: int


@dataclass
class Measured:
    """All requests, those of ``/static``, and the seconds of CPU that this took."""

    samples: list[Sample]
    probes: list[Sample]
    cpu: float


class _Load:
    def __init__(self, plan: Plan, session: aiohttp.ClientSession) -> None:
        self._plan = plan
        self._session = session
        self._numbers = iter(range(1, sys.maxsize))
        self.samples: list[Sample] = []
        self.probes: list[Sample] = []

    async def connect(self) -> None:
        """Have a connection for every client."""
        if self._plan.connected:
            asks = [
                self._ask("GET", "/static", time.monotonic(), 0) for _ in range(self._plan.clients)
            ]
            await asyncio.gather(*asks)

    async def run(self) -> None:
        """Make the requests."""
        plan = self._plan
        end = time.monotonic() + plan.lead + plan.seconds
        probing = asyncio.create_task(self._probe(end))
        await asyncio.sleep(plan.lead)
        begun = time.monotonic()
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._client(begun + number * plan.spread / plan.clients, end))
            for number in range(plan.clients)
        ]
        for number in range(int(plan.rate * plan.seconds)):
            at = begun + number / plan.rate
            await asyncio.sleep(at - time.monotonic())
            tasks.append(asyncio.create_task(self._request(at)))
        await asyncio.sleep(end - time.monotonic())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=plan.grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await probing

    async def _client(self, begun: float, end: float) -> None:
        await asyncio.sleep(begun - time.monotonic())
        while time.monotonic() < end:
            sample = await self._request(time.monotonic())
            if sample.status != 200:
                await asyncio.sleep(THINK)

    async def _request(self, begun: float) -> Sample:
        number = next(self._numbers)
        path = self._plan.path.format(number)
        sample = Sample(begun, begun, 0, "unanswered", number)
        try:
            sample = await self._ask(self._plan.method, path, begun, number)
        finally:
            if not sample.status:
                sample = sample._replace(over=time.monotonic())
            self.samples.append(sample)
        return sample

    async def _probe(self, end: float) -> None:
        tasks = []
        begun = time.monotonic()
        while self._plan.probes and begun < end:
            await asyncio.sleep(begun - time.monotonic())
            tasks.append(asyncio.create_task(self._ask("GET", "/static", begun, 0)))
            begun += 1 / self._plan.probes
        self.probes += await asyncio.gather(*tasks)

    async def _ask(self, method: str, path: str, begun: float, number: int) -> Sample:
        try:
            async with self._session.request(method, self._plan.url + path) as answer:
                await answer.read()
                outcome = answer.headers.get("Retry-Outcome", "")
                return Sample(begun, time.monotonic(), answer.status, outcome, number)
        except (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError, OSError) as exc:
            return Sample(begun, time.monotonic(), 0, type(exc).__name__, number)


async def _main(plan: Plan) -> Measured:
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=PATIENCE)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        load = _Load(plan, session)
        await load.connect()
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        before = time.process_time()
        await load.run()
        return Measured(load.samples, load.probes, time.process_time() - before)


def main() -> None:
    """Follow the plan given as the argument."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.install()
    measured = asyncio.run(_main(Plan(**json.loads(sys.argv[1]))))
    json.dump(vars(measured), sys.stdout)


if __name__ == "__main__":
    main()
