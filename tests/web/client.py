"""Clients that say what they are told to: HTTP/1.1 byte for byte, and HTTP/2."""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2.settings import SettingCodes, Settings
from hyperframe.frame import Frame, GoAwayFrame

from .control import SECONDS

_NO_BODY = frozenset({204, 304})
WAITING = b"(and waits)"
_FRAME = 1 << 18
_WINDOW = 1 << 20
_NOTHING: Mapping[str, str] = {}


class Response(NamedTuple):
    """What came back; `fields` are the headers as they came, but without the date."""

    status: int
    headers: dict[str, str]
    body: bytes
    trailers: dict[str, str]
    fields: list[tuple[str, str]]

    @property
    def retried(self) -> dict[str, str]:
        """The headers that tell of replays."""
        return {name: value for name, value in self.headers.items() if name.startswith("retry-")}


class _Head(NamedTuple):
    status: int
    fields: list[tuple[str, str]]

    @property
    def headers(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.fields}


class Client:
    """What both have in common. A connection that the server closes raises ConnectionError.

    `begin`, `send` and `end` say one request; `head`, `parts` and `trailers` are the next response.
    """

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def begin(self, method: str, path: str, headers: Mapping[str, str] = _NOTHING) -> None:
        """Begin a request with a body; it is chunked if no content-length is among the headers."""
        raise NotImplementedError

    def send(self, data: bytes) -> None:
        """Send a part of the body."""
        raise NotImplementedError

    def end(self) -> None:
        """End the body."""
        raise NotImplementedError

    def head(self) -> _Head:
        """The start of the next response, be it informational."""
        raise NotImplementedError

    def parts(self) -> Iterator[bytes]:
        """Its body, as it comes; afterwards there are the `trailers`."""
        raise NotImplementedError

    trailers: dict[str, str]

    def request(
        self, path: str, method: str = "GET", headers: Mapping[str, str] = _NOTHING
    ) -> None:
        """Say a request without a body."""
        raise NotImplementedError

    def response(self) -> Response:
        """All of the next response."""
        head = self.head()
        body = b"".join(self.parts())
        fields = [field for field in head.fields if field[0].lower() != "date"]
        return Response(head.status, head.headers, body, self.trailers, fields)

    def get(
        self, path: str, method: str = "GET", headers: Mapping[str, str] = _NOTHING
    ) -> Response:
        """Ask and be answered."""
        self.request(path, method, headers)
        return self.response()


class HTTP1(Client):
    """HTTP/1.1."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._file = self.socket.makefile("rb")
        self._methods: deque[str] = deque()
        self._chunked = False
        self._told: _Head | None = None

    def close(self) -> None:
        self._file.close()
        super().close()

    def say(self, data: bytes) -> None:
        """Send these very bytes."""
        self.socket.sendall(data)

    def request_head(self, method: str, path: str, headers: Mapping[str, str] = _NOTHING) -> bytes:
        """The bytes of a request's head."""
        self._methods.append(method)
        lines = [f"{method} {path} HTTP/1.1", "Host: test"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode()

    def request(
        self, path: str, method: str = "GET", headers: Mapping[str, str] = _NOTHING
    ) -> None:
        self.say(self.request_head(method, path, headers))

    def begin(self, method: str, path: str, headers: Mapping[str, str] = _NOTHING) -> None:
        self._chunked = "content-length" not in headers
        more = {"transfer-encoding": "chunked"} if self._chunked else {}
        self.say(self.request_head(method, path, {**headers, **more}))

    def send(self, data: bytes) -> None:
        self.say(b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data)

    def end(self) -> None:
        if self._chunked:
            self.say(b"0\r\n\r\n")

    def head(self) -> _Head:
        line = self._line()
        if not line.startswith("HTTP/1.1 "):
            raise ConnectionError(f"not the start of a response: {line}")
        self._told = head = _Head(int(line.split()[1]), self._fields())
        return head

    def parts(self) -> Iterator[bytes]:
        assert self._told is not None
        head, method = self._told, self._methods.popleft()
        headers = head.headers
        self.trailers = {}
        if method == "HEAD" or head.status in _NO_BODY:
            return
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(self._line(), 16):
                yield self._exactly(size)
                self._line()
            self.trailers = dict(self._fields())
        elif "content-length" in headers:
            left = int(headers["content-length"])
            while left:
                part = self._exactly(min(left, 1 << 18))
                left -= len(part)
                yield part
        else:
            while part := self._file.read1(1 << 18):
                yield part

    def answers(self, seconds: float) -> bool:
        """Whether something comes, or the connection is closed, within so many seconds."""
        return bool(select.select([self.socket], [], [], seconds)[0])

    def rest(self, seconds: float) -> bytes:
        """All that comes until the server closes the connection; `WAITING` if it does not."""
        came = b""
        try:
            while self.answers(seconds):
                data = self.socket.recv(1 << 16)
                if not data:
                    return came
                came += data
        except ConnectionError:
            return came
        return came + WAITING

    def _fields(self) -> list[tuple[str, str]]:
        fields = []
        while line := self._line():
            name, _, value = line.partition(":")
            fields.append((name, value.strip()))
        return fields

    def _line(self) -> str:
        line = self._file.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError(f"closed after {line!r}")
        return line.strip().decode("latin-1")

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise ConnectionError(f"closed after {len(data)} of {size} bytes")
        return data


class _Stream:
    def __init__(self) -> None:
        self.heads: deque[_Head] = deque()
        self.parts: deque[bytes] = deque()
        self.trailers: dict[str, str] = {}
        self.ended = False
        self.error: str | None = None


class HTTP2(Client):
    """HTTP/2 without TLS, with prior knowledge; responses are taken in the requests' order."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self._h2 = h2.connection.H2Connection(config)
        # Python is slow at many small frames.
        larger = {SettingCodes.MAX_FRAME_SIZE: _FRAME, SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW}
        self._h2.local_settings = Settings(client=True, initial_values=larger)
        self._h2.max_inbound_frame_size = _FRAME
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_WINDOW)
        self._streams: dict[int, _Stream] = {}
        self._asked: deque[int] = deque()
        self._unread = b""
        self._flush()

    def request(
        self, path: str, method: str = "GET", headers: Mapping[str, str] = _NOTHING
    ) -> None:
        self._begin(method, path, headers, end=True)

    def begin(self, method: str, path: str, headers: Mapping[str, str] = _NOTHING) -> None:
        self._begin(method, path, headers, end=False)

    def _begin(self, method: str, path: str, headers: Mapping[str, str], *, end: bool) -> None:
        stream = self._h2.get_next_available_stream_id()
        pseudo = {":method": method, ":path": path, ":scheme": "http", ":authority": "test"}
        self._h2.send_headers(stream, [*pseudo.items(), *headers.items()], end_stream=end)
        self._streams[stream] = _Stream()
        self._asked.append(stream)
        self._flush()

    def send(self, data: bytes) -> None:
        stream = self._asked[-1]
        while data:
            size = self._h2.local_flow_control_window(stream)
            size = min(size, self._h2.max_outbound_frame_size, len(data))
            if size:
                self._h2.send_data(stream, data[:size])
                data = data[size:]
                self._flush()
            else:
                self._take_in()

    def end(self) -> None:
        self._h2.end_stream(self._asked[-1])
        self._flush()

    def reset(self) -> None:
        """Take the last request back."""
        self._h2.reset_stream(self._asked.pop())
        self._flush()

    def head(self) -> _Head:
        stream = self._streams[self._asked[0]]
        while not stream.heads:
            self._check(stream)
        return stream.heads.popleft()

    def parts(self) -> Iterator[bytes]:
        number = self._asked.popleft()
        stream = self._streams[number]
        while stream.parts or not stream.ended:
            if not stream.parts:
                self._check(stream)
                continue
            part = stream.parts.popleft()
            self._h2.acknowledge_received_data(len(part), number)
            self._flush()
            yield part
        self.trailers = stream.trailers

    def _check(self, stream: _Stream) -> None:
        if stream.error is not None:
            raise ConnectionError(stream.error)
        self._take_in()

    def _take_in(self) -> None:
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError("closed")
        try:
            events = self._h2.receive_data(self._without_goaway(data))
        except h2.exceptions.ProtocolError as error:
            raise ConnectionError(f"the server breaks the protocol: {error!r}") from error
        for event in events:
            self._note(event)
        self._flush()

    def _without_goaway(self, data: bytes) -> bytes:
        """Leave those frames out: after one, h2 takes nothing in, though answers are still due."""
        self._unread += data
        kept = []
        while len(self._unread) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(self._unread)[:9])
            if len(self._unread) < 9 + length:
                break
            if not isinstance(frame, GoAwayFrame):
                kept.append(self._unread[: 9 + length])
            self._unread = self._unread[9 + length :]
        return b"".join(kept)

    def _note(self, event: h2.events.Event) -> None:
        stream = self._streams.get(getattr(event, "stream_id", None) or 0)
        if stream is None:
            return
        if isinstance(event, (h2.events.ResponseReceived, h2.events.InformationalResponseReceived)):
            fields = [(name, value) for name, value in event.headers if name != ":status"]
            stream.heads.append(_Head(int(dict(event.headers)[":status"]), fields))
        elif isinstance(event, h2.events.DataReceived):
            padding = event.flow_controlled_length - len(event.data)
            if padding:
                self._h2.acknowledge_received_data(padding, event.stream_id)
            if event.data:
                stream.parts.append(event.data)
        elif isinstance(event, h2.events.TrailersReceived):
            stream.trailers = dict(event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            stream.ended = True
        elif isinstance(event, h2.events.StreamReset) and not stream.ended:
            stream.error = f"reset: {event.error_code}"

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self.socket.sendall(data)
