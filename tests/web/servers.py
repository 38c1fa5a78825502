"""The web servers: how each is started and stopped, and what it does differently."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from retrymw.testing._process import ProcessTree
from retrymw.testing._server import free_port

from .client import HTTP1, HTTP2, Client
from .control import SECONDS, Control

ASGI_APP = "tests.web.asgi_app:app"
WSGI_APP = "tests.web.wsgi_app:app"

Command = Callable[[int, int], Sequence[object]]


@dataclass(frozen=True)
class WebServer:
    """A server in one configuration.

    - `command`: its command line, of a port and of the seconds that it gives
      what still runs when it is to stop.
    - `differs`: what it does differently, by the name of the test.
    """

    name: str
    package: str
    interface: Literal["ASGI", "WSGI"]
    command: Command
    protocol: Literal["HTTP/1.1", "HTTP/2"] = "HTTP/1.1"
    differs: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}, {self.interface}, {self.protocol}"

    def says(self, feature: str) -> str:
        """What is seen of a feature here: `yes` where it is as everywhere."""
        return self.differs.get(feature, "yes")

    @property
    def identifier(self) -> str:
        """The name as part of a class's name."""
        return "".join(part for part in str(self).title() if part.isalnum())

    def connect(self, port: int) -> Client:
        """A client of the server's protocol."""
        return HTTP1(port) if self.protocol == "HTTP/1.1" else HTTP2(port)


class Running:
    """A server that runs in a folder of its own; a context manager."""

    def __init__(self, server: WebServer, large: Path | None = None, *, grace: int = 10) -> None:
        self.server = server
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="retrymw-web-", dir="/tmp"))
        if large is not None:
            (self.folder / "large").symlink_to(large)
        self.control = Control(self.folder)
        command = ["env", f"PYTHONPATH={Path(__file__).parents[2]}"]
        command += map(str, server.command(self.port, grace))
        self._processes = ProcessTree(command, self.folder, {})

    def __enter__(self) -> Running:
        try:
            self._wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.kill()
        self.control.close()
        shutil.rmtree(self.folder)

    def connect(self) -> Client:
        """A new connection to it."""
        return self.server.connect(self.port)

    def connect1(self) -> HTTP1:
        """The same, for what only HTTP/1.1 has."""
        return HTTP1(self.port)

    @property
    def keeps_alive(self) -> bool:
        """Whether a connection is for more than one request."""
        return self.server.says("keep-alive") == "yes"

    def terminate(self) -> None:
        """Ask it to stop."""
        self._processes._main.send_signal(signal.SIGTERM)

    def ends(self, seconds: float) -> bool:
        """Whether its main process ends within so many seconds."""
        try:
            self._processes._main.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    @property
    def log(self) -> str:
        """The end of its log."""
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def _wait_ready(self) -> None:
        """Wait until the app answers."""
        deadline = time.monotonic() + SECONDS * 2
        while True:
            try:
                with self.connect() as client:
                    assert client.get("/bare/hello/ready").body == b"hello"
            except OSError:
                if not self._processes.running or time.monotonic() > deadline:
                    raise RuntimeError(f"{self.server} does not come up: {self.log}") from None
                time.sleep(0.01)
            else:
                return


def _python(*arguments: object) -> list[object]:
    return [sys.executable, "-m", *arguments]


def _uvicorn(*options: str) -> Command:
    return lambda port, grace: _python(
        "uvicorn", ASGI_APP, "--port", port, "--timeout-graceful-shutdown", grace, *options
    )


def _hypercorn(kind: str) -> Command:
    return lambda port, grace: _python(
        "hypercorn", ASGI_APP, "--bind", f"127.0.0.1:{port}", "--worker-class", kind,
        "--graceful-timeout", grace,
    )  # fmt: skip


def _granian(app: str, interface: str, protocol: str, *options: str) -> Command:
    return lambda port, grace: _python(
        "granian", app, "--interface", interface, "--http", protocol, "--port", port,
        "--workers-kill-timeout", grace, *options,
    )  # fmt: skip


def _daphne(port: int, grace: int) -> list[object]:
    return _python("daphne", ASGI_APP, "--port", port)


def _gunicorn(kind: str, app: str, *options: str) -> Command:
    return lambda port, grace: _python(
        "gunicorn", app, "--bind", f"127.0.0.1:{port}", "--worker-class", kind,
        "--graceful-timeout", grace, "--no-control-socket", *options,
    )  # fmt: skip


def _waitress(port: int, grace: int) -> list[object]:
    return _python("waitress", "--listen", f"127.0.0.1:{port}", "--threads", 4, WSGI_APP)


def _uwsgi(socket: str, *options: str) -> Command:
    return lambda port, grace: [
        Path(sys.executable).with_name("uwsgi"), f"--{socket}", f"127.0.0.1:{port}",
        "--module", WSGI_APP, "--virtualenv", sys.prefix, "--need-app", "--master",
        "--threads", 4, "--hook-master-start", "unix_signal:15 gracefully_kill_them_all", *options,
    ]  # fmt: skip


_H2C = ("--http-protocols", "h2", "--http2-cleartext", "prior-knowledge")

# What is seen elsewhere than where it is `yes`.
NOT_OFFERED = "not offered"
EARLY_100 = "100 before the app is called"
WHOLE = "the app is called when the body is complete"
IN_MEMORY = "yes or all of it in memory"  # if the app is faster than the client
CUT = "the connection is cut"
ENDS = "the connection can't be used again"
WAITS = "the client is left waiting"
NOTHING = "the app is given nothing"
NOT_TOLD = "the app is not told"
MAY_LACK = "it may lack what the app made last"
CRASHES = "the server crashes"
NO_END = "it does not end"
ONE_REQUEST = "each connection is for one request"

_NO_FILES = {"files": NOT_OFFERED}
_PLAIN = {"files": NOT_OFFERED, "trailers": NOT_OFFERED}

SERVERS = [
    WebServer(
        "uvicorn (h11)", "uvicorn", "ASGI", _uvicorn("--http", "h11", "--loop", "asyncio"),
        differs=_PLAIN,
    ),
    WebServer(
        "uvicorn (httptools, uvloop)", "uvicorn", "ASGI",
        _uvicorn("--http", "httptools", "--loop", "uvloop"), differs=_PLAIN,
    ),
    *(
        WebServer(
            f"hypercorn ({kind})", "hypercorn", "ASGI", _hypercorn(kind),
            differs={**_PLAIN, "early answer": EARLY_100, "shutdown in a long wait": ends},
        )
        for kind, ends in {"asyncio": f"{NO_END} or yes", "trio": "yes"}.items()
    ),
    WebServer(
        "granian", "granian", "ASGI", _granian(ASGI_APP, "asgi", "1"),
        differs={"trailers": NOT_OFFERED},
    ),
    WebServer(
        "daphne", "daphne", "ASGI", _daphne,
        differs={
            **_PLAIN, "early answer": EARLY_100, "chunked upload": WHOLE,
            "client leaves its upload": WHOLE, "large download": IN_MEMORY, "shutdown": CUT,
            "broken response": WAITS, "no answer": WAITS,
        },
    ),
    WebServer(
        "gunicorn (asgi)", "gunicorn", "ASGI", _gunicorn("asgi", ASGI_APP),
        differs=_PLAIN,
    ),
    WebServer(
        "hypercorn (asyncio)", "hypercorn", "ASGI", _hypercorn("asyncio"), "HTTP/2",
        differs={
            **_NO_FILES, "large download": IN_MEMORY, "broken response": WAITS,
            "shutdown in a long wait": NO_END,
        },
    ),
    WebServer(
        "hypercorn (trio)", "hypercorn", "ASGI", _hypercorn("trio"), "HTTP/2",
        differs={
            **_NO_FILES, "large download": IN_MEMORY, "broken response": WAITS,
            "shutdown": f"yes or {CUT}", "client leaves its upload": f"yes or {CRASHES}",
        },
    ),
    WebServer(
        "granian", "granian", "ASGI", _granian(ASGI_APP, "asgi", "2"), "HTTP/2",
        differs={"trailers": NOT_OFFERED, "HEAD": "it gets a body"},
    ),
    WebServer(
        "gunicorn (asgi)", "gunicorn", "ASGI",
        _gunicorn("asgi", ASGI_APP, *_H2C), "HTTP/2",
        differs={
            **_NO_FILES, "client leaves its upload": f"{NOT_TOLD} or yes",
            "client leaves the stream": f"{NOT_TOLD} or yes",
        },
    ),
    WebServer(
        "gunicorn (sync)", "gunicorn", "WSGI", _gunicorn("sync", WSGI_APP),
        differs={
            "keep-alive": ONE_REQUEST, "pipelining": "closes after 1 of 3",
            "early answer": EARLY_100,
        },
    ),
    WebServer(
        "gunicorn (gthread)", "gunicorn", "WSGI",
        _gunicorn("gthread", WSGI_APP, "--threads", "4"),
        differs={"early answer": EARLY_100},
    ),
    WebServer(
        "gunicorn (gevent)", "gunicorn", "WSGI", _gunicorn("gevent", WSGI_APP),
        differs={"early answer": EARLY_100},
    ),
    WebServer(
        "waitress", "waitress", "WSGI", _waitress,
        differs={
            "chunked upload": WHOLE, "early answer": EARLY_100, "HEAD": ENDS,
            "204 and 304": ENDS, "shutdown": CUT,
        },
    ),
    WebServer(
        "granian", "granian", "WSGI",
        _granian(WSGI_APP, "wsgi", "1", "--blocking-threads", "4"),
        differs={**_NO_FILES, "broken response": MAY_LACK},
    ),
    WebServer(
        "uWSGI (http)", "uWSGI", "WSGI",
        _uwsgi("http", "--http-keepalive", "--http-auto-chunked"),
        differs={
            "chunked upload": NOTHING, "100-continue": "0 times", "HEAD": ENDS, "204 and 304": ENDS,
            "pipelining": "closes after 1 of 3", "shutdown in a long wait": NO_END,
        },
    ),
    WebServer(
        "uWSGI (http-socket)", "uWSGI", "WSGI", _uwsgi("http-socket"),
        differs={
            "chunked upload": NOTHING, "100-continue": "0 times", "keep-alive": ONE_REQUEST,
            "pipelining": "closes after 1 of 3", "shutdown in a long wait": NO_END,
        },
    ),
    WebServer(
        "granian", "granian", "WSGI",
        _granian(WSGI_APP, "wsgi", "2", "--blocking-threads", "4"), "HTTP/2",
        differs={**_NO_FILES, "HEAD": "it gets a body"},
    ),
    WebServer(
        "gunicorn (gthread)", "gunicorn", "WSGI",
        _gunicorn("gthread", WSGI_APP, "--threads", "4", *_H2C), "HTTP/2",
    ),
]  # fmt: skip
