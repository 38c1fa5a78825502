"""One side of the drill: the app in a process of its own, its customers, and what befalls them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import httpx
from anyio import to_thread

from example_app.drill.faults import Faults
from example_app.drill.load import Load, Tally
from example_app.serve import AppName

# The five replays of a request span six seconds. A fault is over after a quarter of that, so that
# the last two find the database well, whenever the first attempt was.
LONGEST_FAULT: Final = 1.5
KILLS: Final = 5  # not more than there are replays


@dataclass(frozen=True)
class Side:
    """What is played, for at least so many seconds; ``log`` is a file for the app's output."""

    app: AppName
    url: str
    faults: Faults
    seconds: float
    clients: int
    log: str

    @asynccontextmanager
    async def open(self, tally: Tally, *, protected: bool) -> AsyncIterator[Load]:
        """Run the app within the block.

        Raises:
            RuntimeError: the app does not start.
        """
        with self._serve(protected) as base_url:
            limits = httpx.Limits(max_connections=None, keepalive_expiry=2)  # uvicorn's is 5
            async with httpx.AsyncClient(base_url=base_url, limits=limits, timeout=30) as http:
                try:
                    page = await http.get("/products")
                except httpx.TransportError as error:
                    raise RuntimeError(f"the app did not start: {self._output()}") from error
                skus = [product["sku"] for product in page.raise_for_status().json()]
                yield Load(http, skus, self.clients, tally)

    async def play(self, load: Load) -> None:
        """Let the customers in, and do our worst."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(load.run)
            await self._befall(load)
            load.close()

    async def _befall(self, load: Load) -> None:
        tally = load.tally
        begin = anyio.current_time()
        fault = min(LONGEST_FAULT, self.seconds * 0.1)

        async def calm(until: float) -> None:
            await load.settle()
            tally.phase = "all is calm"
            await anyio.sleep_until(begin + until * self.seconds)

        await calm(until=0.1)
        tally.phase = "connections are killed"
        for _ in range(KILLS):
            await to_thread.run_sync(self.faults.kill_connections)
            await anyio.sleep(fault / KILLS)
        await calm(until=0.35)
        filling = self.faults.fill()
        if filling is not None:
            tally.phase = "all connections are taken"
            async with _in_thread(filling):
                await anyio.sleep(fault)
            await calm(until=0.65)
        tally.phase = "the server is killed"
        async with _in_thread(self.faults.outage()):
            await anyio.sleep(fault)
        await calm(until=1)

    def _output(self) -> str:
        return Path(self.log).read_text(errors="replace")[-2000:]

    @contextmanager
    def _serve(self, protected: bool) -> Iterator[str]:
        """The app's URL. Requests wait in the socket's queue until the app is ready."""
        command = [sys.executable, "-m", "example_app", "serve", f"--app={self.app}"]
        with socket.create_server(("127.0.0.1", 0)) as listener, open(self.log, "ab") as log:
            command += [f"--fd={listener.fileno()}"] + ["--unprotected"] * (not protected)
            base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            process = subprocess.Popen(  # noqa: S603  # our own command
                command,
                env={**os.environ, "DATABASE_URL": self.url},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C is for the drill, which then ends the app
            )
        try:
            yield base_url
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@asynccontextmanager
async def _in_thread(manager: AbstractContextManager[object]) -> AsyncIterator[None]:
    """Enter and leave in worker threads, since both take their time."""
    await to_thread.run_sync(manager.__enter__)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(manager.__exit__, None, None, None)
