"""One attempt's wiring under WSGI: its ``start_response`` and input, and what it returns."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable, Iterator, Sized
from time import monotonic
from typing import Any, Final

from retrymw import _reply
from retrymw._context import Attempt, Running
from retrymw._core.exchange import Refuse
from retrymw._input import RecordedInput
from retrymw._recording import Recording
from retrymw._settings import Settings
from retrymw._traces import forget_frames
from retrymw.instrumentation import log_trouble
from retrymw.typing import Environ, ExcInfo, StartResponse, Write

__all__ = ["Run"]


_NO_HEADERS: Final[list[tuple[str, str]]] = []
_NO_LENGTH: Final = frozenset({None, "", "0"})  # what CONTENT_LENGTH says else is not judged


class Run(Running):
    """One run of the app: what it starts, writes and returns, and what of the request outlives it.

    Attributes:
        held: body bytes that the client has not been given, written or yielded.
        rest: the app's iterable where there may be more, in ``iter``; None when there is not.
        complete: the app's iterable has come to its end, in good order.
        closable: what the app returned has a ``close()``, whether called by now or not.
        plain: nothing is to be added to the start, and nothing keeps it from being sent.
        length: how many chunks the app's iterable says that it has, if it does.
        passed: a ``wsgi.file_wrapper``, for the server's eyes only.
    """

    __slots__ = (
        "_close",
        "_exc_info",
        "_start_response",
        "_write",
        "call",
        "closable",
        "complete",
        "context",
        "headers",
        "held",
        "length",
        "own_context",
        "passed",
        "plain",
        "rest",
        "snapshot",
        "status_line",
    )

    request: Environ

    def __init__(
        self,
        settings: Settings,
        environ: Environ,
        start_response: StartResponse,
        previous: Run | None = None,
    ) -> None:
        self.settings = settings
        self.request = environ
        self._start_response = start_response
        self.status_line: str | None = None
        self.headers: list[tuple[str, str]] = _NO_HEADERS
        self._exc_info: ExcInfo | None = None
        self._write: Write | None = None
        self._close: Callable[[], object] | None = None
        self.closable = False
        self.over = False
        self.endpoint = None
        self.broken = None
        self._committed = False
        self.length: int | None = None
        self.released = False
        self.held: list[bytes] = []
        self.plain = False
        self.complete = False
        self.rest: Iterator[bytes] | None = None
        self.passed: Iterable[bytes] | None = None
        if previous is None:
            self.started = monotonic()
            self.number = 1
            self._attempt = None
            self.place = None
            self.snapshot = environ.copy()
            self.context = contextvars.copy_context()
            self.own_context: contextvars.Context | None = None
            self.call: Callable[..., Any] = _call
            self.recording = None
        else:
            self.started, self.context = previous.started, previous.context
            self.number = previous.exchange.number
            self._attempt = Attempt(previous.exchange, self)
            self.place = previous.place
            self.snapshot = previous.snapshot
            self.own_context = self.context.copy()
            self.call = self.own_context.run
            self.recording = previous.recording
        if (
            environ.get("CONTENT_LENGTH") not in _NO_LENGTH
            or "HTTP_TRANSFER_ENCODING" in environ
            or "wsgi.input_terminated" in environ
        ):
            self._record()

    def _record(self) -> None:
        environ = self.request
        if "wsgi.input" in environ:  # PEP 3333 demands it; some test clients leave it out
            if self.recording is None:
                policy = self.settings.policy
                self.recording = Recording(policy.body_memory, policy.body_limit)
            environ["wsgi.input"] = RecordedInput(environ["wsgi.input"], self.recording)

    @property
    def method(self) -> str:
        # PEP 3333 demands it; some test clients leave it out. What is not known is not safe.
        return str(self.snapshot.get("REQUEST_METHOD", ""))

    @property
    def path(self) -> str:
        """The request's path, as it came."""
        return str(self.snapshot.get("PATH_INFO", ""))

    @property
    def status(self) -> int | None:
        """The status code the app started with, if it did."""
        code = (self.status_line or "")[:3]
        return int(code) if code.isdigit() else None

    def again(self, start_response: StartResponse) -> Run:
        """The wiring of the next attempt; the environ is what it was, the body starts at byte 0."""
        environ = self.request
        environ.clear()
        environ.update(self.snapshot)
        return Run(self.settings, environ, start_response, self)

    # What the app does.

    def start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: ExcInfo | None = None,
        /,
    ) -> Write:
        """The app's ``start_response``: held, so that a failed attempt leaves no trace."""
        if self.released:
            if exc_info is None:
                return self._start_response(status, headers)
            return self._start_response(status, headers, exc_info)
        if self.status_line is not None and exc_info is None:
            raise AssertionError("start_response() was called twice without exc_info (PEP 3333)")
        if exc_info is not None:
            self.attempt.saw(exc_info[1])
        self.status_line, self.headers, self._exc_info = status, headers, exc_info
        self.plain = self.settings.plain and status < "5" and exc_info is None
        return self.write

    def write(self, data: bytes) -> None:
        """What ``start_response`` returns: held like any other body bytes."""
        if self.over:
            return
        if self._write is None:
            self.held.append(data)
            if not self.worth_releasing:
                return
            self.release()
        else:
            self._write(data)

    def take(self, result: Iterable[bytes]) -> None:
        """Take from what the app returned until it is worth releasing, or over and closed."""
        if isinstance(result, Sized):
            self.length = len(result)
        if type(result) in (list, tuple):
            self.held.extend(result)
            return
        self._close = getattr(result, "close", None)
        self.closable = self._close is not None
        if _is_file_wrapper(result, self.request) and not (self.holds_bodies and self._is_doomed):
            self.passed = result
            return
        self.rest = rest = iter(result)
        if self._streams_events:
            return
        chunk = None
        for chunk in rest:
            if chunk:
                self.held.append(chunk)
                if self.worth_releasing or self.status_line is None:
                    self.start()
                    return
        if chunk is not None and not self.held:
            self.held.append(chunk)  # servers tell a body that is empty from none at all
        self.rest = None
        self.complete = True
        self.close()

    @property
    def worth_releasing(self) -> bool:
        """Whether what is held has the client's bytes, and not only a server error's."""
        if self.status_line is None:
            return False
        if self.holds_bodies:
            return sum(map(len, self.held)) > self.settings.policy.body_memory
        return any(self.held)

    @property
    def holds_bodies(self) -> bool:
        """Whether the body is held until the app returns."""
        line = self.status_line
        return line is None or line >= "5" or self.settings.holds_all

    @property
    def _streams_events(self) -> bool:
        if self.status_line is None or self.holds_bodies:
            return False
        return any(
            name.lower() == "content-type" and value.lower().startswith("text/event-stream")
            for name, value in self.headers
        )

    @property
    def _is_doomed(self) -> bool:
        return self._attempt is not None and bool(self.exchange.dooms)

    def close(self) -> None:
        """Close what the app returned, once."""
        close, self._close = self._close, None
        if close is not None:
            close()

    def discard(self) -> None:
        """The attempt has failed: close what it returned; the client gets nothing of it."""
        self.over = True
        self.held = []
        try:
            self.call(self.close)
        except Exception:
            log_trouble("closing what a failed attempt returned raised")
        finally:
            # The wait may be long, and what the app left in these may hold a connection (G8).
            if self._exc_info is not None:
                forget_frames(self._exc_info[1])
            self._exc_info = self.rest = self.passed = None

    # What the client gets.

    def commit(self) -> None:
        """Commit what the attempt leaves, once, if its response is worth it."""
        for database in self.to_commit(self.status):
            try:
                database.commit(self.attempt)
            except BaseException as exc:
                # The client is not told of what did not come about.
                self.status_line, self.held, self.complete = None, [], False
                self.broke(exc)
                raise

    def start(self) -> None:
        """Give the server the start, once, if there is one."""
        if self.released:
            return
        if self.settings.units and not self.over:
            self.commit()
        self.released = True
        self.plain = False
        if self.recording is not None:
            self.recording.stop()
        status, headers = self.status_line, self.headers
        if status is None:
            return
        if self.number > 1 or self.settings.always_told:
            self.exchange.seal("response")
            headers = self._exposed(headers)
        exc_info, self._exc_info = self._exc_info, None
        if exc_info is None:
            self._write = self._start_response(status, headers)
        else:
            self._write = self._start_response(status, headers, exc_info)

    def release(self) -> None:
        """Give the server the start and what is held, by its ``write``."""
        self.start()
        held, self.held = self.held, []
        for data in held:
            if self._write is not None:
                self._write(data)

    def _exposed(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        report = self.exchange.report(monotonic(), self.path)
        return headers + _reply.missing(
            _reply.headers(report, self.settings.policy.expose), (name for name, _ in headers)
        )

    def forget_body(self) -> None:
        """The exchange is over."""
        if self.recording is not None:
            self.recording.close()

    def refuse(self, refusal: Refuse, start_response: StartResponse) -> list[bytes]:
        """Answer 503."""
        environ = self.request
        report = self.exchange.report(monotonic(), self.path)
        headers, body = _reply.reply(
            refusal, report, self.settings.policy.expose, environ.get("HTTP_ACCEPT", "")
        )
        start_response(_reply.STATUS_LINE, headers)
        return [] if self.exchange.method == "HEAD" else [body]


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _is_file_wrapper(result: object, environ: Environ) -> bool:
    wrapper = environ.get("wsgi.file_wrapper")
    if isinstance(wrapper, type):
        return isinstance(result, wrapper)
    return callable(wrapper) and hasattr(result, "filelike")  # mod_wsgi's is a function
