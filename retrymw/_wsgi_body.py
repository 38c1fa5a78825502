"""The rest of a WSGI response that is being sent, and what there is to do at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from retrymw._context import running
from retrymw._wsgi_run import Run

__all__ = ["Body", "SizedBody"]

_END: Final[Any] = object()


class Body:
    """What the server gets when there is something left to do at the end of the response.

    The end is the last chunk or ``close()``, whichever comes first: test clients often never call
    ``close()``, and some servers skip the body of a HEAD request.
    """

    def __init__(
        self,
        run: Run,
        *,
        succeed: Callable[[Run], None],
        fail: Callable[[Run, BaseException], None],
        error: Exception | None = None,
    ) -> None:
        self._run = run
        self._held = iter(run.held)
        self._rest = run.rest
        self._succeed = succeed
        self._fail = fail
        self._error = error  # for close() to raise
        self._ended = error is not None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        for chunk in self._held:
            return chunk
        if self._rest is not None and not self._ended:
            chunk = self._guard(next, self._rest, _END)
            if chunk is not _END:
                return chunk  # type: ignore[no-any-return]  # the app's own
        try:
            self._end()
        except Exception as exc:
            self._error = exc  # the body is complete: it belongs to close()
        raise StopIteration

    def close(self) -> None:
        """Close what the app returned, once, and end the exchange."""
        self._held = iter(())
        self._end()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _end(self) -> None:
        if not self._ended:
            self._guard(self._run.close)
            self._ended = True
            self._succeed(self._run)

    def _guard(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run app code as part of the attempt."""
        run = self._run
        try:
            return run.call(_as_run, run, function, *args)
        except BaseException as exc:
            self._ended = True
            self._fail(run, exc)
            raise


class SizedBody(Body):
    """The same of what has a length: servers tell the Content-Length of a body of one chunk."""

    def __len__(self) -> int:
        return self._run.length or 0


def _as_run(run: Run, function: Callable[..., Any], *args: Any) -> Any:
    previous = running.get()
    running.set(run)
    try:
        return function(*args)
    finally:
        running.set(previous)
