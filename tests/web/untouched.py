"""What nobody should notice: requests of which nothing fails."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from .client import HTTP1, WAITING
from .servers import MAY_LACK, WAITS, Running
from .way import NORMAL, Look, Way, patience

BODY = b"a body " * 1000


class Untouched:
    """What every server does with and without the middleware."""

    @pytest.mark.parametrize("status", [204, 304])
    def test_no_body_untouched(self, running: Running, status: int) -> None:
        """G5: a response without a body is the same bytes."""
        assert_same(running, "nothing", status=status)

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    def test_hello_untouched(self, running: Running, method: str) -> None:
        """G5: a short response is the same bytes."""
        assert_same(running, "hello", method=method)

    def test_upload_untouched(self, running: Running) -> None:
        """G5: what an upload is answered is the same bytes."""
        headers = {"content-length": str(len(BODY))}
        assert_same(running, "echo", method="PUT", headers=headers, body=BODY)

    def test_range_untouched(self, running: Running) -> None:
        """G5: a part of a resource is the same bytes."""
        assert_same(running, "range", headers={"range": "bytes=5-7"})

    def test_stream_untouched(self, running: Running) -> None:
        """G5: a response without a length is the same bytes, chunk by chunk."""
        assert_same(running, "stream")

    def test_early_answer_untouched(self, running: Running) -> None:
        """G5: a response before the body is read is the same bytes."""
        assert_same(running, "early", method="PUT", headers={"content-length": "0"})

    def test_error_untouched(self, running: Running) -> None:
        """G5: what a server makes of an error that is not ours is the same bytes."""
        assert_same(running, "raises")

    def test_broken_response_untouched(self, running: Running) -> None:
        """G5: a response that breaks off is cut at the same byte, and looks cut."""
        assert_same(running, "breaks", feature="broken response")

    def test_validated(self, running: Running, look: Look) -> None:
        """G5: validators between server and middleware, and middleware and app, are content."""

        def observe(way: Way) -> str:
            asked = way.new("range", fail=2)
            with way.connect() as client:
                response = client.get(asked.path, headers={"range": "bytes=5-7"})
            way.check(response, attempts=3, status=206)
            asked = way.new("echo", fail=1, read=100)
            with way.connect() as client:
                client.begin("PUT", asked.path, {"content-length": str(len(BODY))})
                client.send(BODY)
                client.end()
                response = client.response()
            way.check(response)
            assert response.body == BODY
            return NORMAL

        look("validated", observe, "valid", "bare-valid")


class ASGIUntouched:
    """What ASGI has besides."""

    def test_no_answer_untouched(self, running: Running) -> None:
        """G5: what a server makes of an app that does not answer is the same bytes."""
        assert_same(running, "mute", feature="no answer")

    def test_trailers_untouched(self, running: Running) -> None:
        """G5: a response with trailers is the same bytes."""
        assert_same(running, "trailers", headers={"te": "trailers"})


def assert_same(running: Running, name: str, *, feature: str = "", **request: Any) -> None:
    """Compare what is answered to the same request with and without the middleware."""
    seconds = patience(running, feature)
    bare, retried = (
        _answer(Way(running, mount), seconds, name, **request) for mount in ("bare", "quick")
    )
    if running.server.says(feature) == MAY_LACK:
        assert bare.startswith(retried) or retried.startswith(bare)
    else:
        assert bare == retried
    waits = isinstance(bare, bytes) and bare.endswith(WAITING)
    assert waits == (running.server.says(feature) == WAITS)


def _answer(
    way: Way,
    seconds: float,
    name: str,
    method: str = "GET",
    headers: Mapping[str, str] = MappingProxyType({}),
    body: bytes = b"",
    **options: object,
) -> object:
    """All bytes of the response, or what they mean if they are HTTP/2's; without the date."""
    asked = way.new(name, **options)
    with way.connect() as client:
        if isinstance(client, HTTP1):
            headers = {"connection": "close", **headers}
        if body:
            client.begin(method, asked.path, headers)
            client.send(body)
            client.end()
        else:
            client.request(asked.path, method, headers)
        if name == "stream":
            way.control.open_gate(asked.key)
        if isinstance(client, HTTP1):
            came = client.rest(seconds)
            return re.sub(rb"\r\ndate: [^\r]+", b"", came, flags=re.IGNORECASE)
        client.socket.settimeout(seconds)
        try:
            response = client.response()
        except TimeoutError:
            return WAITING
        except ConnectionError as error:
            return str(error)
        return response._replace(headers={})
