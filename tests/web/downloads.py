"""Responses: what every server is put through."""

from __future__ import annotations

import hashlib

import pytest

from .behaviour import TEN_LINES
from .client import Client
from .servers import Running
from .way import NORMAL, Look, Way, goes_on

MOST_KIB = 32 << 10  # that a process may grow by while 64 MiB pass through it


class Downloads:
    """What every server does with a response."""

    def test_head(self, running: Running, look: Look) -> None:
        """G5: HEAD gets the headers of GET, no body, and the connection goes on."""

        def observe(way: Way) -> str:
            found = []
            for method in ("HEAD", "GET"):
                asked = way.new("hello", fail=1)
                with way.connect() as client:
                    client.request(asked.path, method)
                    try:
                        head = client.head()
                        assert head.status == 200
                        found.append([field for field in head.fields if not _varies(field)])
                        assert b"".join(client.parts()) == (b"" if method == "HEAD" else b"hello")
                    except ConnectionError:
                        assert method == "HEAD"
                        return "it gets a body"
                    if not goes_on(way, client):
                        return "the connection can't be used again"
            assert found[0] == found[1]
            return NORMAL

        look("HEAD", observe)

    @pytest.mark.parametrize("status", [204, 304])
    def test_no_body(self, running: Running, look: Look, status: int) -> None:
        """G5: 204 and 304 have no body, and the connection goes on."""

        def observe(way: Way) -> str:
            asked = way.new("nothing", fail=1, status=status)
            with way.connect() as client:
                response = client.get(asked.path)
                way.check(response, status=status)
                assert response.headers["etag"] == '"1"'
                assert response.headers.get("content-length", "0") == "0"
                return NORMAL if goes_on(way, client) else "the connection can't be used again"

        look("204 and 304", observe)

    def test_range(self, running: Running, look: Look) -> None:
        """G5: a part of a resource is the same part after a replay."""

        def observe(way: Way) -> str:
            asked = way.new("range", fail=1)
            with way.connect() as client:
                response = client.get(asked.path, headers={"range": "bytes=10-19"})
            way.check(response, status=206)
            assert response.headers["content-range"] == f"bytes 10-19/{len(TEN_LINES)}"
            assert response.body == TEN_LINES[10:20]
            return NORMAL

        look("ranges", observe)

    def test_streaming(self, running: Running, look: Look) -> None:
        """G5: the client has the first chunk before the app makes the second."""

        def observe(way: Way) -> str:
            asked = way.new("stream", fail=1)
            with way.connect() as client:
                client.request(asked.path)
                assert client.head().status == 200
                parts = client.parts()
                assert next(parts) == b"first"
                way.control.open_gate(asked.key)
                assert b"".join(parts) == b"second"
            return NORMAL

        look("streaming", observe)

    def test_download(self, running: Running, look: Look, large: str) -> None:
        """G2, G5: a large response passes through, byte for byte, and not into memory."""

        def observe(way: Way) -> str:
            asked = way.new("download", fail=1)
            with way.connect() as client:
                client.request(asked.path)
                assert client.head().status == 200
                assert _digest(client) == large
            grown = way.control.wait(asked.key, "grown")
            return NORMAL if grown < MOST_KIB else "all of it in memory"

        look("large download", observe)

    def test_file(self, running: Running, look: Look, large: str) -> None:
        """G5: a file that the app leaves to the server is sent by it, and whole."""

        def observe(way: Way) -> str:
            asked = way.new("file", fail=1)
            with way.connect() as client:
                client.request(asked.path)
                head = client.head()
                assert head.status == 200
                if "content-type" in head.headers:
                    assert b"".join(client.parts()) == b"not offered"
                    return "not offered"
                assert _digest(client) == large
            return NORMAL

        look("files", observe)

    def test_503(self, running: Running) -> None:
        """G10: the 503 is a page for a browser and JSON for others, and the connection goes on."""
        way = Way(running, "quick")
        for accept, kind in {"text/html": "text/html", "*/*": "application/problem+json"}.items():
            for method in ("GET", "HEAD"):
                with way.connect() as client:
                    asked = way.new("hello", fail=9)
                    response = client.get(asked.path, method, {"accept": accept})
                    assert response.status == 503
                    assert response.headers["content-type"].startswith(kind)
                    assert int(response.headers["retry-after"]) >= 1
                    assert response.headers["cache-control"] == "no-store"
                    assert response.headers["retry-outcome"] == "exhausted"
                    assert bool(response.body) == (method == "GET")
                    assert goes_on(way, client) or method == "HEAD"
                assert way.runs(asked.key) == [1, 2, 3, 4, 5, 6]


class ASGIDownloads:
    """What ASGI has besides."""

    def test_trailers(self, running: Running, look: Look) -> None:
        """G5: trailers come after the body, where the server has them."""

        def observe(way: Way) -> str:
            asked = way.new("trailers", fail=1)
            with way.connect() as client:
                response = client.get(asked.path, headers={"te": "trailers"})
            way.check(response)
            if response.body == b"not offered":
                return "not offered"
            assert response.body == TEN_LINES
            return NORMAL if response.trailers == {"lines": "10"} else "offered, but not sent"

        look("trailers", observe)


def _digest(client: Client) -> str:
    digest = hashlib.sha256()
    for part in client.parts():
        digest.update(part)
    return digest.hexdigest()


def _varies(field: tuple[str, str]) -> bool:
    return field[0].lower() in ("date", "server-timing")
