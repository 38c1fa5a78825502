"""Connections: clients that ask for more at once, or leave."""

from __future__ import annotations

from .client import HTTP2
from .servers import CRASHES, WHOLE, Running
from .way import NORMAL, SOON, Look, Way, patience

TOGETHER = 3


class Connections:
    """What every server does when its client leaves."""

    def test_client_leaves_the_stream(self, running: Running, look: Look) -> None:
        """G6: a client that leaves in the middle of a response ends it."""
        seconds = patience(running, "client leaves the stream")

        def observe(way: Way) -> str:
            asked = way.new("endless", fail=1)
            with way.connect() as client:
                client.request(asked.path)
                assert client.head().status == 200
                parts = client.parts()
                read = 0
                while read < 1 << 20:
                    read += len(next(parts))
            left = way.control.comes(asked.key, "left", seconds=seconds)
            return NORMAL if left else "the app is not told"

        look("client leaves the stream", observe)


class Connections1:
    """What HTTP/1.1 has besides."""

    def test_pipelining(self, running: Running, look: Look) -> None:
        """G5: requests that are sent without waiting for an answer are all replayed."""

        def observe(way: Way) -> str:
            with running.connect1() as client:
                asked = [way.new("hello", fail=1) for _ in range(TOGETHER)]
                client.say(b"".join(client.request_head("GET", path) for _, path in asked))
                for number in range(TOGETHER):
                    try:
                        response = client.response()
                    except ConnectionError:
                        return f"closes after {number} of {TOGETHER}"
                    way.check(response)
                    assert response.body == b"hello"
            return NORMAL

        look("pipelining", observe)


class Connections2:
    """What HTTP/2 has besides."""

    def test_streams(self, running: Running, look: Look) -> None:
        """G5: requests that are under way at the same time are all replayed."""

        def observe(way: Way) -> str:
            with way.connect() as client:
                asked = [way.new("hello", fail=1) for _ in range(TOGETHER)]
                for _, path in asked:
                    client.request(path)
                for _ in asked:
                    response = client.response()
                    way.check(response)
                    assert response.body == b"hello"
            return NORMAL

        look("streams", observe)


class ASGIConnections:
    """What becomes of a wait under ASGI."""

    def test_client_leaves_the_wait(self, running: Running, look: Look) -> None:
        """G6: a client that leaves ends the wait, and the app does not run again."""

        def observe(way: Way) -> str:
            with way.connect() as client:
                asked = way.new("echo" if way.replays else "listen", fail=9)
                client.request(asked.path)
                way.control.wait(asked.key, "wait")
            return _abandoned(way, asked.key)

        look("client leaves the wait", observe, "patient")

    def test_client_leaves_its_upload(self, look_anew: Look) -> None:
        """G6: the same in the middle of an upload, be it that the app has read of it or not."""
        feature = "client leaves its upload"

        def observe(way: Way) -> str:
            seconds = patience(way.running, feature)
            for read in (0, 1):
                asked = way.new("echo" if way.replays else "listen", fail=9, read=read)
                try:
                    with way.connect() as client:
                        client.begin("PUT", asked.path, {"content-length": "50000"})
                        client.send(b"12")
                        called = way.control.comes(asked.key, "wait", seconds=seconds)
                    found = _abandoned(way, asked.key, feature) if called else WHOLE
                except ConnectionError:
                    found = WHOLE
                if found != NORMAL:
                    return CRASHES if way.running.ends(SOON) else found
            return NORMAL

        # A server of its own: there is one that may not survive it.
        look_anew(feature, observe, "patient", grace=1)


class ASGIConnections2:
    """What becomes of a wait under ASGI and HTTP/2."""

    def test_reset_in_the_wait(self, running: Running, look: Look) -> None:
        """G6: a request that is taken back is abandoned, and the connection goes on."""

        def observe(way: Way) -> str:
            with HTTP2(running.port) as client:
                asked = way.new("echo" if way.replays else "listen", fail=9)
                client.request(asked.path)
                way.control.wait(asked.key, "wait")
                client.reset()
                found = _abandoned(way, asked.key)
                assert client.get(f"/bare/hello/{way.control.new_key()}").body == b"hello"
            return found

        look("reset in the wait", observe, "patient")


class WSGIConnections:
    """What becomes of a wait under WSGI, which has no way to tell that the client has left."""

    def test_client_leaves_the_wait(self, running: Running) -> None:
        """A client that leaves changes nothing: the request is replayed like any other."""
        way = Way(running, "brief")
        with way.connect() as client:
            asked = way.new("hello", fail=1)
            client.request(asked.path)
            way.control.wait(asked.key, "wait")
        assert way.control.wait(asked.key, "outcome") == "recovered"
        assert way.runs(asked.key) == [1, 2]
        with way.connect() as client:
            assert client.get(f"/bare/hello/{way.control.new_key()}").body == b"hello"


def _abandoned(way: Way, key: str, feature: str = "client leaves the wait") -> str:
    seconds = patience(way.running, feature)
    if not way.control.comes(key, "outcome", "abandoned", seconds=seconds):
        return "the app is not told"
    assert way.runs(key) == [1]
    return NORMAL
