"""What the middleware costs large bodies: peak memory and the time to the first byte.

    python -m benchmarks bodies [--megabytes 100]

Every case runs in a uvicorn process of its own; its peak memory is the kernel's high-water mark.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click
import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from retrymw import RetryPolicy
from retrymw.asgi import RetryMiddleware

CHUNK = b"x" * (1 << 16)
MIB = 1 << 20
SECONDS = 60.0


class Result(NamedTuple):
    """One case: mebibytes at the peak, seconds to the first byte and in all."""

    peak: float
    first: float
    total: float


async def upload(request: Request) -> Response:
    """Read the body as it comes."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
    return JSONResponse({"size": size, "peak": _peak()})


async def download(request: Request) -> Response:
    """Send as much as asked for, in chunks."""
    count = int(request.query_params["size"]) // len(CHUNK)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield CHUNK

    return StreamingResponse(chunks(), media_type="application/octet-stream")


async def peak(request: Request) -> Response:
    """The high-water mark of this process."""
    return JSONResponse({"peak": _peak()})


def _peak() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this kernel does not tell VmHWM in /proc/self/status; use Linux")


def serve(which: str, descriptor: int) -> None:
    """Run the app on an inherited listening socket."""
    routes = [
        Route("/upload", upload, methods=["PUT"]),
        Route("/download", download),
        Route("/peak", peak),
    ]
    app = Starlette(routes=routes)
    if which == "retrymw":
        app.add_middleware(RetryMiddleware)
    uvicorn.run(app, fd=descriptor, log_level="warning")


@contextmanager
def server(which: str) -> Iterator[httpx.Client]:
    """A client of a server process that is gone at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "benchmarks.bodies", "--serve", which]
        descriptor = listener.fileno()
        process = subprocess.Popen(
            [*command, "--descriptor", str(descriptor)], pass_fds=[descriptor]
        )
        host, port = listener.getsockname()
        try:
            with httpx.Client(base_url=f"http://{host}:{port}", timeout=SECONDS) as client:
                client.get("/peak").raise_for_status()
                yield client
        finally:
            process.terminate()
            process.wait(SECONDS)


def measure_upload(which: str, size: int) -> Result:
    """PUT a body of that size."""
    with server(which) as client:
        start = time.perf_counter()
        answer = client.put("/upload", content=(CHUNK for _ in range(size // len(CHUNK))))
        total = time.perf_counter() - start
        report = answer.raise_for_status().json()
        if report["size"] != size:
            raise RuntimeError(f"{report['size']} bytes arrived of {size}")
        return Result(report["peak"], total, total)


def measure_download(which: str, size: int) -> Result:
    """GET a body of that size."""
    with server(which) as client:
        start = time.perf_counter()
        first, received = 0.0, 0
        with client.stream("GET", "/download", params={"size": size}) as answer:
            for chunk in answer.iter_raw():
                first = first or time.perf_counter() - start
                received += len(chunk)
        total = time.perf_counter() - start
        if received != size:
            raise RuntimeError(f"{received} bytes arrived of {size}")
        return Result(client.get("/peak").json()["peak"], first, total)


@click.command()
@click.option("--megabytes", default=100, show_default=True, type=click.IntRange(min=1))
@click.option("--serve", "which", hidden=True)
@click.option("--descriptor", type=int, default=0, hidden=True)
def bodies(megabytes: int, which: str | None, descriptor: int) -> None:
    """Measure what the middleware costs large bodies; exit status 1 if the memory aim is missed."""
    if which is not None:
        return serve(which, descriptor)
    size = megabytes * MIB
    allowed = RetryPolicy().body_memory / MIB + 2
    missed = False
    for name, measure in (("upload", measure_upload), ("download", measure_download)):
        bare, ours = (
            min((measure(which, size) for _ in range(3)), key=lambda result: result.peak)
            for which in ("bare", "retrymw")
        )
        over = ours.peak - bare.peak
        missed = missed or over > allowed
        print(f"{megabytes} MiB {name}: peak {bare.peak:.1f} MiB bare, {ours.peak:.1f} MiB")
        print(f"  with retrymw: {over:+.1f} MiB (allowed {allowed:+.1f}); whole transfer ", end="")
        print(f"{bare.total:.2f} s and {ours.total:.2f} s", end="")
        if name == "download":
            print(
                f", first byte after {bare.first * 1e3:.1f} ms and {ours.first * 1e3:.1f} ms",
                end="",
            )
        print()
    sys.exit(missed)


if __name__ == "__main__":
    bodies()
