"""Request bodies: what every server is put through."""

from __future__ import annotations

import pytest

from .servers import Running
from .way import NORMAL, SOON, Look, Way, patience


class Uploads:
    """What every server does with a request body."""

    def test_chunked_upload(self, running: Running, look: Look) -> None:
        """G5: an upload without a length is replayed while its rest is still to come."""
        first, rest = b"a" * 4096, b"b" * 5000
        seconds = patience(running, "chunked upload")

        def observe(way: Way) -> str:
            asked = way.new("echo", fail=1, read=100)
            with way.connect() as client:
                client.begin("PUT", asked.path)
                client.send(first)
                runs = 2 if way.replays else 1
                streams = way.control.comes(asked.key, "attempt", runs, seconds=seconds)
                try:
                    client.send(rest)
                    client.end()
                except ConnectionError:
                    return "the app is given nothing"
                response = client.response()
            way.check(response)
            if not response.body:
                return "the app is given nothing"
            assert response.body == first + rest
            return NORMAL if streams else "the app is called when the body is complete"

        look("chunked upload", observe)

    def test_large_upload(self, running: Running, look: Look) -> None:
        """G2: an upload that is larger than `body_memory` is replayed from disk, more than once."""
        body = bytes(range(256)) * (3 << 12)

        def observe(way: Way) -> str:
            asked = way.new("echo", fail=3, read=2 << 20)
            with way.connect() as client:
                client.begin("PUT", asked.path, {"content-length": str(len(body))})
                client.send(body)
                client.end()
                response = client.response()
            way.check(response, attempts=4)
            assert response.body == body
            return NORMAL

        look("large upload", observe)

    def test_upload_then_keep_alive(self, running: Running, look: Look) -> None:
        """G5: after a large upload, requests on the same connection are replayed one by one."""
        body = bytes(1 << 20)

        def observe(way: Way) -> str:
            with way.connect() as client:
                asked = way.new("echo")
                client.begin("PUT", asked.path, {"content-length": str(len(body))})
                client.send(body)
                client.end()
                way.check(client.response(), attempts=1)
                for fail in (1, 0, 2):
                    asked = way.new("hello", fail=fail)
                    try:
                        response = client.get(asked.path)
                    except ConnectionError:
                        return "each connection is for one request"
                    way.check(response, attempts=1 + fail)
            return NORMAL

        look("keep-alive", observe)


class Uploads1:
    """What HTTP/1.1 has besides."""

    @pytest.mark.parametrize("read", [0, 1], ids=["unread", "read"])
    def test_100_continue(self, running: Running, look: Look, read: int) -> None:
        """G5: who asks before it sends is told to go on when the app first reads, and once."""
        seconds = patience(running, "100-continue")

        def observe(way: Way) -> str:
            asked = way.new("echo", fail=2, read=read)
            with running.connect1() as client:
                client.begin("PUT", asked.path, {"content-length": "5", "expect": "100-continue"})
                is_told = client.answers(seconds)
                heads = [client.head()] if is_told else []
                client.send(b"12345")
                while not heads or heads[-1].status == 100:
                    heads.append(client.head())
                assert b"".join(client.parts()) == b"12345"
                assert heads.pop().status == 200
            assert way.runs(asked.key) == ([1, 2, 3] if way.replays else [1])
            return NORMAL if len(heads) == 1 else f"{len(heads)} times"

        look("100-continue", observe)

    def test_early_answer(self, running: Running, look: Look) -> None:
        """G5: an app that answers without reading is answered for without a 100, replays or not."""

        def observe(way: Way) -> str:
            asked = way.new("early", fail=2)
            with running.connect1() as client:
                client.begin("PUT", asked.path, {"content-length": "5", "expect": "100-continue"})
                if not client.answers(patience(running, "early answer")):
                    client.send(b"12345")
                    assert client.head().status == 413
                    return "no answer before the body"
                head = client.head()
                told_first = head.status == 100
                if told_first:
                    if not client.answers(SOON):
                        client.send(b"12345")
                    head = client.head()
                assert head.status == 413
            return "100 before the app is called" if told_first else NORMAL

        look("early answer", observe)
