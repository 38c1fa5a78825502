"""A real server, real sockets: what only they can show (G1, G5, G6)."""

import contextlib
import socket
import threading

import anyio.to_thread
import pytest
import uvicorn
from tenacity import wait_fixed

from retrymw import RetryPolicy, current_attempt
from retrymw.asgi import RetryMiddleware

from .helpers import answer, lost, patient, policy, read

SECONDS = 10  # what a test that fails waits


@contextlib.contextmanager
def serving(app):
    """Serve the app; gives a function that connects."""
    config = uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield lambda: Connection(listening.getsockname())
        finally:
            server.should_exit = True
            thread.join()


class Connection:
    """A client that says byte for byte what it is told to."""

    def __init__(self, address):
        self._socket = socket.create_connection(address, SECONDS)
        self._file = self._socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._file.close()
        self._socket.close()

    def say(self, text):
        self._socket.sendall(text.encode() if isinstance(text, str) else text)

    def request(self, method="GET", path="/", body="", **headers):
        lines = [f"{method} {path} HTTP/1.1", "host: test"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.say("\r\n".join([*lines, "", body]))

    def response(self):
        """The status, the headers and the body of the next response."""
        status = int(self._file.readline().split()[1])
        headers = {}
        while line := self._file.readline().strip().decode():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if "content-length" in headers:
            body = self._file.read(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._file.readline(), 16):
                body += self._file.read(size)
                self._file.readline()
            self._file.readline()
        else:
            body = b""
        return status, headers, body


def test_chunked_upload_is_replayed():
    """G5: a chunked upload whose first reader failed is read again, then on, as it comes."""
    again = threading.Event()

    async def app(scope, receive, send):
        first = (await receive())["body"]
        if not current_attempt().is_replay:
            raise lost()
        again.set()
        await answer(send, first + await read(receive))

    with serving(RetryMiddleware(app, policy=policy())) as connect, connect() as client:
        client.request("PUT", body="3\r\nabc\r\n", transfer_encoding="chunked")
        assert again.wait(SECONDS)
        client.say("2\r\nde\r\n0\r\n\r\n")
        status, headers, body = client.response()
    assert (status, body) == (200, b"abcde")
    assert headers["retry-attempts"] == "2"


def test_large_upload_is_replayed_from_disk():
    """G2: an upload larger than `body_memory` is replayed, three times over."""
    size = 3 << 20

    async def app(scope, receive, send):
        body = await read(receive)
        if current_attempt().number < 4:
            raise lost()
        await answer(send, str(len(body)).encode())

    middleware = RetryMiddleware(app, policy=policy(body_memory=1 << 16))
    with serving(middleware) as connect, connect() as client:
        client.request("PUT", content_length=size)
        client.say(b"x" * size)
        assert client.response()[2] == str(size).encode()


@pytest.mark.parametrize("failures", [0, 2])
def test_100_continue_is_not_triggered_by_us(failures):
    """G5: a client that asks before it sends is told to go on by the app's reading only."""

    async def app(scope, receive, send):
        if current_attempt().number <= failures:
            raise lost()
        await answer(send, status=413)

    middleware = RetryMiddleware(app, policy=RetryPolicy(wait=wait_fixed(0.02)))
    with serving(middleware) as connect, connect() as client:
        client.request("PUT", content_length=5, expect="100-continue")
        assert client.response()[0] == 413


@pytest.mark.parametrize("reads_first", [False, True])
def test_100_continue_is_triggered_once_by_the_app(reads_first):
    """G5: when the app reads, the client is told to go on, once, however many attempts read."""

    async def app(scope, receive, send):
        if reads_first or current_attempt().is_replay:
            body = await read(receive)
        if not current_attempt().is_replay:
            raise lost()
        await answer(send, body)

    with serving(RetryMiddleware(app, policy=policy())) as connect, connect() as client:
        client.request("PUT", content_length=5, expect="100-continue")
        assert client.response()[0] == 100
        client.say("12345")
        status, _, body = client.response()
    assert (status, body) == (200, b"12345")


@pytest.mark.parametrize("read_first", [False, True], ids=["unread", "half read"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_client_that_closes_during_the_wait(method, read_first):
    """G6: a closed connection ends the wait, and the app does not run again."""
    calls, waits, over, reports = [], threading.Event(), threading.Event(), []

    async def app(scope, receive, send):
        calls.append(current_attempt().number)
        if read_first:
            await receive()
        raise lost()

    def hook(report):
        reports.append(report.outcome)
        (waits if report.outcome is None else over).set()

    middleware = RetryMiddleware(app, policy=patient(), hooks=[hook])
    with serving(middleware) as connect:
        client = connect()
        if method == "PUT":
            client.request("PUT", body="12", content_length=5)
        else:
            client.request()
        assert waits.wait(SECONDS)
        client.close()
        assert over.wait(SECONDS)
    assert calls == [1]
    assert reports == [None, "abandoned"]


def test_streaming_answer_arrives_as_it_is_made():
    """G5: the client has the first chunk while the app makes the second."""
    read_it = threading.Event()

    async def app(scope, receive, send):
        if not current_attempt().is_replay:
            raise lost()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        assert await anyio.to_thread.run_sync(read_it.wait, SECONDS)
        await send({"type": "http.response.body", "body": b"second"})

    with serving(RetryMiddleware(app, policy=policy())) as connect, connect() as client:
        client.request()
        for expected in (b"HTTP/1.1 200 OK\r\n", b"5\r\n", b"first\r\n"):
            while (line := client._file.readline()) != expected:
                assert line
        read_it.set()
        assert client._file.readline() == b"6\r\n"


def fails_once_for_each_path(*but):
    """An app that fails in the first attempt of every request but these, and answers the path."""
    worked = {*but}

    async def app(scope, receive, send):
        path = scope["path"]
        await read(receive)
        if path not in worked:
            worked.add(path)
            raise lost()
        await answer(send, path.encode(), headers=[("content-length", str(len(path)))])

    return RetryMiddleware(app, policy=policy())


def test_pipelined_requests_are_all_replayed():
    """G5: the second of two pipelined requests, which uvicorn starts in the first one's context."""
    with serving(fails_once_for_each_path()) as connect, connect() as client:
        client.say("".join(f"GET /{n} HTTP/1.1\r\nhost: test\r\n\r\n" for n in range(3)))
        bodies = [client.response()[2] for _ in range(3)]
    assert bodies == [b"/0", b"/1", b"/2"]


def test_requests_after_a_large_upload_are_replayed():
    """G5: the same on a connection that uvicorn had paused, and resumed in the app's context."""
    size = 1 << 20
    with serving(fails_once_for_each_path("/upload")) as connect, connect() as client:
        client.request("PUT", "/upload", content_length=size)
        client.say(b"x" * size)
        assert client.response()[2] == b"/upload"
        bodies = []
        for number in range(2):
            client.request(path=f"/{number}")
            bodies.append(client.response()[2])
    assert bodies == [b"/0", b"/1"]


def test_503_over_the_wire():
    """G10: a browser gets the 503 as a page, HEAD gets its headers, and the connection lives on."""

    async def app(scope, receive, send):
        raise lost()

    with serving(RetryMiddleware(app, policy=policy())) as connect, connect() as client:
        client.request(accept="text/html")
        status, headers, body = client.response()
        assert status == 503
        assert body.startswith(b"<!doctype html>")
        assert int(headers["retry-after"]) >= 1
        assert headers["retry-outcome"] == "exhausted"
        client.request("HEAD", connection="close")
        client._file.readline()
        rest = client._file.read()
    assert rest.endswith(b"\r\n\r\n")


def test_app_without_an_answer_is_the_servers_business():
    """G5: what an app leaves undone, the server does."""

    async def app(scope, receive, send):
        return None

    with serving(RetryMiddleware(app, policy=policy())) as connect, connect() as client:
        client.request()
        assert client.response()[0] == 500
