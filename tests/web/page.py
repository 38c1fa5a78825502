"""The reference page of the web servers, made of what `servers.py` says and the tests see."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Final

from .servers import SERVERS, WebServer

PAGE: Final = Path("docs/reference/web-servers.md")

# Where a feature is looked for; what it is when it is `yes`.
FEATURES: Final[dict[str, tuple[str, str]]] = {
    "chunked upload": ("", "is replayed while its rest is still to come"),
    "large upload": ("", "is replayed from disk"),
    "keep-alive": ("", "after a replay the connection serves the next requests"),
    "100-continue": ("HTTP/1.1", "told once, when the app first reads"),
    "early answer": ("HTTP/1.1", "a 413 that comes before the body, and without a 100"),
    "pipelining": ("HTTP/1.1", "all requests that are sent at once are replayed"),
    "streams": ("HTTP/2", "all requests that are under way at once are replayed"),
    "HEAD": ("", "has the headers of GET and no body, and the connection goes on"),
    "204 and 304": ("", "have no body, and the connection goes on"),
    "ranges": ("", "a 206 is the same part after a replay"),
    "streaming": ("", "the first chunk arrives before the app makes the second"),
    "large download": ("", "64 MiB arrive byte for byte, and never fill the memory"),
    "files": ("", "`wsgi.file_wrapper` and `http.response.pathsend` reach the server"),
    "trailers": ("ASGI", "arrive after a replay"),
    "503": ("", "JSON or a page, for GET and HEAD, and the connection goes on"),
    "client leaves the wait": ("", "the exchange ends at once, and the app does not run again"),
    "client leaves its upload": ("ASGI", "the same"),
    "reset in the wait": ("ASGI, HTTP/2", "the same, for one request of a connection"),
    "client leaves the stream": ("", "the app's response is ended"),
    "error": ("", "one that is not ours is answered as without the middleware"),
    "broken response": ("", "is cut at the same byte, and the connection is closed"),
    "no answer": ("ASGI", "an app that does not answer is answered for"),
    "untouched": ("", "what nothing fails of is the same bytes, but for the date"),
    "validated": ("", "validators on both sides of the middleware are content"),
    "shutdown": ("", "in a wait: the request is replayed and answered first"),
    "shutdown in a long wait": ("", "the server ends when its own patience does"),
}

_EXPLAINED: Final = {
    "100 before the app is called": "The server tells the client to send before the app is called.",
    "the app is called when the body is complete": (
        "The server calls the app when it has the whole body: until then no client is waiting for "
        "a replay, and one that leaves is nothing to the app."
    ),
    "yes or all of it in memory": (
        "The server takes what the app makes as fast as it comes, though the client may be slower."
    ),
    "the connection is cut": "The server ends at once, and cuts its connections.",
    "yes or the connection is cut": "The server may cut the connection before the answer is out.",
    "the connection can't be used again": (
        "The server closes the connection, or leaves something of a body on it."
    ),
    "each connection is for one request": "The server closes each connection after one request.",
    "closes after 1 of 3": "The server answers the first request, and closes the connection.",
    "the client is left waiting": "The server neither answers nor closes the connection.",
    "it gets a body": "The server sends the body that the app made for HEAD.",
    "0 times": "The server never tells the client to go on.",
    "the app is given nothing": "The app would have to read a chunked body by other means.",
    "the app is not told or yes": "The app is not always told that the client has left.",
    "yes or the server crashes": "The whole server may crash, about once in fifty times.",
    "it does not end": "The server waits for the request, as long as that takes.",
    "it does not end or yes": "On Python 3.13 the server waits for the request without a limit.",
    "it may lack what the app made last": "What the app made last may be lost.",
}


def page(versions: dict[str, str]) -> str:
    """The page, with these versions of the packages."""
    notes: dict[str, int] = {}
    groups = {
        "ASGI, HTTP/1.1": "ASGI over HTTP/1.1",
        "ASGI, HTTP/2": "ASGI over HTTP/2",
        "WSGI, HTTP/1.1": "WSGI over HTTP/1.1",
        "WSGI, HTTP/2": "WSGI over HTTP/2",
    }
    tables = []
    for kind, title in groups.items():
        servers = [server for server in SERVERS if str(server).endswith(kind)]
        tables += [f"## {title}\n", *_table(servers, kind, notes), ""]
    told = "\n".join(f"{number}. {_EXPLAINED[seen]}" for seen, number in notes.items())
    packages = "\n".join(f"| {name} | {versions[name]} |" for name in packages_of(SERVERS))
    head = _INTRODUCTION.format(packages=packages)
    return "\n".join([head, *tables, "## Notes\n", told, "", _ADVICE])


def installed() -> dict[str, str]:
    """The versions of what is installed here."""
    return {name: version(name) for name in packages_of(SERVERS)}


def versions_of(text: str) -> dict[str, str]:
    """The versions that a page names."""
    found = dict(re.findall(r"^\| (\S+) \| (\d\S*) \|$", text, re.MULTILINE))
    return {name: found.get(name, "") for name in packages_of(SERVERS)}


def packages_of(servers: list[WebServer]) -> list[str]:
    """Their packages, each once."""
    return sorted({server.package for server in servers}, key=str.lower)


def _table(servers: list[WebServer], kind: str, notes: dict[str, int]) -> list[str]:
    rows = [
        f"| {name}: {meaning} | "
        + " | ".join(_cell(server, name, notes) for server in servers)
        + " |"
        for name, (where, meaning) in FEATURES.items()
        if all(part in kind for part in where.split(", "))
    ]
    head = " | ".join(server.name for server in servers)
    return [f"| test | {head} |", "|---" * (1 + len(servers)) + "|", *rows]


def _cell(server: WebServer, name: str, notes: dict[str, int]) -> str:
    if (server.interface, name) == ("WSGI", "client leaves the wait"):
        return "replayed"
    seen = server.says(name)
    if seen == "yes":
        return "yes"
    if seen == "not offered":
        return "-"
    return f"({notes.setdefault(seen, len(notes) + 1)})"


_INTRODUCTION: Final = """\
# Web servers

retrymw is tested under each of these servers as a process of its own, over real sockets, on the
oldest and the newest Python. This page is written by those tests. Each looks at the server twice,
with the middleware and without, and must see the same: what is not *yes* is the server's own way,
and *-* is what it does not offer.

| package | version |
|---|---|
{packages}
"""

_ADVICE: Final = """\
## What to know

**A server stops while a request waits.** It lets the request be replayed and answered if that
takes no longer than its patience. Give it more than the policy's `deadline`, which is 10 seconds,
and the longest attempt: `--timeout-graceful-shutdown` (uvicorn; without it there is no limit),
`--graceful-timeout` (gunicorn: 30 seconds; hypercorn: 3), `--workers-kill-timeout` (granian;
without it there is no limit). waitress and daphne have no such setting, and cut the connection.
uWSGI cuts it too, unless it is told to stop gracefully: `--hook-master-start "unix_signal:15
gracefully_kill_them_all"`. It then waits for its requests without a limit, as hypercorn on asyncio
does over HTTP/2; what ends them is `deadline`.

**WSGI can't tell that a client has left.** Its request is replayed like any other, and a waiting
request keeps its thread. With as many waiting requests as threads the server serves nothing else,
so without a `max_waiting` of the policy's half of the threads may wait under uWSGI and waitress,
which tell how many there are, and four elsewhere: set it to half of the threads. gunicorn's sync
workers have one thread, which a wait stops: use gthread or gevent, or keep `deadline` short.
gunicorn also kills a sync worker that is busy for longer than its `--timeout`, which is 30
seconds. Under gevent a wait costs next to nothing, and `max_waiting` is 1000.

**uWSGI** gives apps no chunked uploads through `wsgi.input`. With `--http`, connections live on
with `--http-keepalive` and `--http-auto-chunked`. Without `--threads`, one wait stops the worker.

**daphne, and hypercorn over HTTP/2,** take a response into memory as fast as the app makes it,
with the middleware or without.

**hypercorn on trio** needs nothing: the middleware runs on both event loops.
"""
