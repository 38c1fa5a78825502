"""A server process: ``python -m benchmarks.stress.serve JSON``, on a socket that it inherits.

When it is ready it prints its process id.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]  # no types

from benchmarks.stress.asgi import make_app
from benchmarks.stress.rows import BY_NAME

__all__ = ["THREADS"]

THREADS = 8
KEEP_ALIVE = 60  # seconds


class _Gunicorn(BaseApplication):  # type: ignore[misc]  # has no types
    def __init__(self, app: Any, descriptor: int) -> None:
        self._app = app
        self._descriptor = descriptor
        super().__init__()

    def load_config(self) -> None:
        settings = {
            "bind": f"fd://{self._descriptor}",
            "worker_class": "gthread",
            "threads": THREADS,
            "keepalive": KEEP_ALIVE,
            "loglevel": "critical",
            "control_socket_disable": True,
            "post_worker_init": _ready,
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        return self._app


def _ready(_: object = None) -> None:
    print(os.getpid(), flush=True)


@asynccontextmanager
async def _lifespan(_: object) -> AsyncIterator[None]:
    _ready()
    yield


def main() -> None:
    """Serve a row until killed. Nobody logs: writing tracebacks would be what is measured."""
    told = json.loads(sys.argv[1])
    logging.basicConfig(handlers=[logging.NullHandler()])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    row = BY_NAME[told["row"]]
    arguments = (row, told["database"], told["hold"], told["policy"])
    if row.wsgi:
        from benchmarks.stress.wsgi import make_app as make_wsgi_app

        _Gunicorn(make_wsgi_app(*arguments), told["descriptor"]).run()
        return
    app = make_app(*arguments)
    app.router.lifespan_context = _lifespan
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE,
    )
    # Not by Config(fd=...): that takes it for a Unix socket, and TCP_NODELAY would not be set.
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=told["descriptor"])])


if __name__ == "__main__":
    main()
