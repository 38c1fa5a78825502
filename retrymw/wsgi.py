"""The WSGI shell: runs the app and obeys the exchange. Threads and gevent; decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, Final

from retrymw._context import Attempt, is_inside, running
from retrymw._core.exchange import Command, Raise, Refuse, Replay, Send
from retrymw._core.policy import RetryPolicy, is_async
from retrymw._core.ticket import RoomSnapshot
from retrymw._frameworks import warn_of
from retrymw._settings import Settings
from retrymw._traces import adopt, forget_attempt, restore
from retrymw._wsgi_body import Body, SizedBody
from retrymw._wsgi_run import Run
from retrymw._wsgi_wait import max_waiting, wait_turn
from retrymw.classify import classify
from retrymw.instrumentation import log_trouble, tell
from retrymw.typing import Environ, Hook, StartResponse, WSGIApp

__all__ = ["RetryMiddleware"]

_SQUASHING: Final = {
    "bottle.Bottle",
    "django.WSGIHandler",
    "falcon.App",
    "flask.Flask",
    "pyramid.Router",
}


class RetryMiddleware:
    """Replays requests that the database failed: ``RetryMiddleware(wsgi_app, policy=…)``.

    A request made inside another one's attempt passes through: nested replays would multiply (G2).
    For a framework that squashes exceptions use its ``retrymw.integrations``, as for Flask.

    Args:
        app: a WSGI app (PEP 3333).
        policy: the rules; None for ``RetryPolicy()``.
        databases: adapters whose request-scoped state is undone between attempts.
        hooks: observers, called with a :class:`retrymw.typing.Report`.
        find_endpoint: for integrations: the endpoint of a routed environ.

    Raises:
        TypeError: naming the argument, its value and what is allowed.
    """

    def __init__(
        self,
        app: WSGIApp,
        *,
        policy: RetryPolicy | None = None,
        databases: Iterable[Any] = (),
        hooks: Iterable[Hook] = (),
        find_endpoint: Callable[[Environ], object] | None = None,
    ) -> None:
        if not callable(app):
            raise TypeError(f"app is {app!r}; allowed: a WSGI app")
        self.app = app
        self._settings = Settings(
            policy,
            databases,
            hooks,
            find_endpoint=find_endpoint or _find_endpoint,
            max_waiting=max_waiting,
        )
        for database in self._settings.databases:
            if is_async(database.rollback):
                raise TypeError(
                    f"databases has {database!r}; allowed under WSGI: adapters that are not async"
                )
        if find_endpoint is None:
            warn_of(_SQUASHING, __name__, app)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        outer = running.get()
        if outer is not None and is_inside(outer):
            return self.app(environ, start_response)
        rooms = self._settings.rooms
        run = Run(self._settings, environ, start_response)
        if rooms.open:
            rooms.arrive(run)
            if run.place is not None and run.place.state != "running":
                return self._conclude(run, None, start_response, queued=True)
        error: Exception | None = None
        result: Iterable[bytes] | None = None
        token = running.set(run)
        try:
            result = self.app(environ, run.start_response)
            if type(result) is list and run._attempt is None and run.plain:
                run.over = True
                run.forget_body()
                if rooms.open:
                    rooms.done(run, run.status)
                start_response(run.status_line or "", run.headers)
                return result
            run.take(result)
            if self._settings.units:
                run.commit()
        except Exception as exc:
            error = run.broken or exc
        except BaseException:
            self._fail(run)
            raise
        finally:
            running.reset(token)
            result = None  # or what it has would be held while we wait
        try:
            return self._conclude(run, error, start_response)
        finally:
            error = None  # or the traceback, which holds this frame, would be a reference cycle

    def _conclude(
        self,
        run: Run,
        error: Exception | None,
        start_response: StartResponse,
        *,
        queued: bool = False,
    ) -> Iterable[bytes]:
        """Do what the exchange says until it is over; one that is queued has not begun yet."""
        try:
            while True:
                command = Replay(0.0) if queued else self._ended(run, error)
                if run.own_context is not None and isinstance(command, (Send, Raise)):
                    adopt(run.own_context)
                if isinstance(command, Send):
                    return self._sent(run)
                if isinstance(command, Raise) and error is not None:
                    return self._pass(run, error)
                if not queued:
                    self._undo(run)
                    restore(run.context)
                if isinstance(command, Replay):
                    if not queued:
                        self._tell(run, next_in=command.after)
                        forget_attempt(run, error)
                        error = None
                    command = self._wait(run, command)
                if isinstance(command, Refuse):
                    self._settings.rooms.leave(run)
                    self._tell(run)
                    forget_attempt(run, error)
                    run.forget_body()
                    return run.refuse(command, start_response)
                run = run.again(start_response)
                queued = False
                try:
                    run.call(self._run_app, run)
                except Exception as exc:
                    error = run.broken or exc
                except BaseException:
                    self._fail(run)
                    raise
        except BaseException:
            self._settings.rooms.leave(run)
            raise
        finally:
            error = None  # as above

    def _run_app(self, run: Run) -> None:
        running.set(run)
        run.take(self.app(run.request, run.start_response))
        if self._settings.units:
            run.commit()

    def _ended(self, run: Run, error: BaseException | None) -> Command:
        """What to do; the waiting room hears of it at once."""
        if run.sealed is not None:
            run.exchange.seal(run.sealed)
        run.attempt.look_for_mark()
        return self._settings.rooms.ended(
            run,
            failure=None if error is None else classify(error, known=run.attempt.known),
            raised=error is not None,
            status=run.status,
        )

    def _sent(self, run: Run) -> Iterable[bytes]:
        """What to return to the server: the very object that the app returned where possible."""
        callbacks = run.attempt.success_callbacks
        passed = run.passed
        try:
            if passed is not None:
                on_disk = run.recording is not None and run.recording.on_disk(0)
                if callbacks is None and not on_disk:
                    run.release()
                    self._done(run)
                    self._tell(run)
                    return passed  # with the recording: the file may be the request's own body
                run.rest = iter(passed)
            run.start()
        except BaseException:  # the server would not have it
            self._fail(run)
            raise
        if run.rest is None:
            self._done(run)  # before the client gets its bytes: it may be slow
            if callbacks is None and not run.closable:
                self._succeed(run)
                # Servers tell the Content-Length of what has a length, and of nothing else.
                return run.held if run.length is not None else iter(run.held)
        else:
            self._settings.rooms.answered(run, run.status)
        body = Body if run.length is None else SizedBody
        return body(run, succeed=self._succeed, fail=self._broke)

    def _pass(self, run: Run, error: Exception) -> Iterable[bytes]:
        """Let through what the app raised, after what the client is to have of the response."""
        try:
            if run.is_uncommitted(run.status):
                raise error
            if run.complete:  # close() raised: the server is to hear of it when it closes
                run.start()
                return Body(run, succeed=self._succeed, fail=self._broke, error=error)
            if run.held:
                run.release()
        finally:
            self._fail(run)
        raise error

    def _broke(self, run: Run, error: BaseException) -> None:
        """A response that the client has a part of broke off: there is nothing left to decide."""
        run.exchange.seal("response")
        self._ended(run, error)
        self._fail(run)

    def _succeed(self, run: Run) -> None:
        self._done(run)
        self._tell(run)
        forget_attempt(run)
        run.forget_body()
        for callback in run.attempt.success_callbacks or ():
            _call_back(callback)

    def _done(self, run: Run) -> None:
        """The app has done its part."""
        first = not run.over
        _release(run)
        if first and self._settings.rooms.open:
            self._settings.rooms.done(run, run.status)

    def _fail(self, run: Run) -> None:
        try:
            self._undo(run)
        finally:
            self._settings.rooms.leave(run)
            self._tell(run)
            run.forget_body()

    def _undo(self, run: Run) -> None:
        """Close, roll back, release, call back, whatever becomes of the one before."""
        attempt = run.attempt
        try:
            run.discard()
        finally:
            try:
                for database in list(attempt.resources or ()):
                    _guarded("rollback", database, attempt)
            finally:
                _release(run)
        for callback in attempt.rollback_callbacks or ():
            _call_back(callback)

    def _wait(self, run: Run, command: Replay) -> Command:
        """Wait for the next attempt; what to do then."""
        rooms = self._settings.rooms
        try:
            wait_turn(rooms, run, command.after)
        except BaseException:
            rooms.leave(run)
            run.exchange.abandon()
            self._tell(run)
            run.forget_body()
            raise
        return rooms.called(run) or command

    def _tell(self, run: Run, next_in: float | None = None) -> None:
        if run.exchange.failures:
            report = run.exchange.report(
                monotonic(), run.path, next_in, self._settings.rooms.snapshot(run)
            )
            tell(self._settings.hooks, report)

    def waiting_rooms(self) -> list[RoomSnapshot]:
        """The waiting rooms that are not calm; none while all is well."""
        return self._settings.rooms.snapshots()

    def close(self) -> None:
        """Let nobody wait any more, for a server that shuts down: 503 to all who do."""
        self._settings.rooms.close()


def _release(run: Run) -> None:
    run.over = True
    attempt = run.attempt
    for database in list(attempt.resources or ()):
        _guarded("release", database, attempt)
    attempt.resources = None


def _guarded(what: str, database: Any, attempt: Attempt) -> None:
    try:
        getattr(database, what)(attempt)
    except Exception:
        log_trouble("%s of %r failed", what, database)


def _call_back(callback: Callable[[], object]) -> None:
    try:
        if is_async(callback):
            raise TypeError("a coroutine function can't be called back under WSGI")
        callback()
    except Exception:
        log_trouble("callback %r raised", callback)


def _find_endpoint(environ: Environ) -> object:
    """WSGI has no convention for it; integrations know their framework's."""
    return None
