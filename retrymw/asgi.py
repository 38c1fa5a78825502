"""The ASGI shell: runs the app and obeys the exchange. asyncio and trio; decides nothing itself."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Coroutine, Generator, Iterable
from time import monotonic
from typing import Any, Final

from retrymw._asgi_run import Run
from retrymw._asgi_undo import call_back, release, undo
from retrymw._asgi_wait import wait_turn
from retrymw._context import is_inside, running
from retrymw._core.exchange import Command, Raise, Refuse, Replay
from retrymw._core.exchange import Send as SendHeld
from retrymw._core.policy import RetryPolicy
from retrymw._core.ticket import RoomSnapshot
from retrymw._frameworks import warn_of
from retrymw._listening import Listener
from retrymw._settings import Settings
from retrymw._tasks import Tasks, current_loop, open_tasks
from retrymw._traces import adopt, forget_attempt, restore
from retrymw.classify import classify
from retrymw.instrumentation import log_trouble, tell
from retrymw.typing import ASGIApp, Hook, Receive, Scope, Send

__all__ = ["RetryMiddleware"]

_MAX_WAITING: Final = 1000
_SQUASHING: Final = ("falcon", "litestar", "quart")


class RetryMiddleware:
    """Replays requests that the database failed. Add it outermost: it wraps any ASGI 3 app.

    ``app.add_middleware(RetryMiddleware, policy=…, databases=[…], hooks=[…])``, or
    ``RetryMiddleware(app, …)``. Lifespan and websocket pass through untouched, and so does a
    request made inside another one's attempt: nested replays would multiply (G2).

    Args:
        app: an ASGI 3 app.
        policy: the rules; None for ``RetryPolicy()``.
        databases: adapters whose request-scoped state is undone between attempts.
        hooks: observers, called with a :class:`retrymw.typing.Report`; they must not block.
        find_endpoint: for integrations: the endpoint of a routed scope. The default knows
            ``scope["endpoint"]``, ``scope["route"]`` and Litestar's ``scope["route_handler"]``.

    Raises:
        TypeError: naming the argument, its value and what is allowed.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        policy: RetryPolicy | None = None,
        databases: Iterable[Any] = (),
        hooks: Iterable[Hook] = (),
        find_endpoint: Callable[[Scope], object] | None = None,
    ) -> None:
        if not callable(app):
            raise TypeError(f"app is {app!r}; allowed: an ASGI 3 app")
        self.app = app
        self._settings = Settings(
            policy,
            databases,
            hooks,
            find_endpoint=find_endpoint or _find_endpoint,
            max_waiting=lambda _: _MAX_WAITING,
            loop=current_loop,
        )
        if find_endpoint is None:
            warn_of(_SQUASHING, __name__, app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        outer = running.get()
        if scope["type"] != "http" or (outer is not None and is_inside(outer)):
            return await self.app(scope, receive, send)
        rooms = self._settings.rooms
        run = Run(self._settings, scope, receive, send)
        if rooms.open:
            rooms.arrive(run)
            if run.place is not None and run.place.state != "running":
                return await self._conclude(run, None, None, receive, send, queued=True)
        error: Exception | None = None
        result = None
        token = running.set(run)
        try:
            result = await self.app(scope, run.receive, run.send)
            if self._settings.units:
                await run.commit()
        except Exception as exc:
            error = run.broken or exc
        except BaseException:
            try:
                await undo(run)
            finally:
                run.forget_body()
                rooms.leave(run)
            raise
        finally:
            run.over = True
            running.reset(token)
        if run.released and error is None and run._attempt is None:
            if run.recording is not None:
                run.recording.close()
            if rooms.open:
                rooms.done(run, run.status)
            return result
        try:
            return await self._conclude(run, error, result, receive, send)
        finally:
            error = None  # or the traceback, which holds this frame, would be a reference cycle

    async def _conclude(
        self,
        run: Run,
        error: Exception | None,
        result: Any,
        receive: Receive,
        send: Send,
        *,
        queued: bool = False,
    ) -> Any:
        """Do what the exchange says until it is over; one that is queued has not begun yet."""
        context: contextvars.Context | None = None
        tasks: Tasks | None = None
        try:
            while True:
                command = Replay(0.0) if queued else self._ended(run, error)
                if isinstance(command, (SendHeld, Raise)):
                    if context is not None:
                        adopt(context)
                    await self._finish(run, failed=error is not None)
                    if error is not None:
                        raise error
                    forget_attempt(run)
                    for callback in run.attempt.success_callbacks or ():
                        try:
                            await call_back(callback)
                        except Exception:
                            log_trouble("callback %r failed", callback)
                    return result
                if not queued:
                    run.close()
                    restore(run.context)
                    await self._undo_or_abandon(run)
                if isinstance(command, Replay) and not run.gone:
                    if not queued:
                        self._tell(run, next_in=command.after)
                        forget_attempt(run, error)
                        error = None
                    if tasks is None:
                        tasks = await open_tasks()
                        run.listener = Listener(receive, tasks)
                    try:
                        await wait_turn(self._settings.rooms, run, command.after, tasks)
                    except BaseException:
                        self._abandon(run)
                        raise
                    if not run.gone:
                        command = self._settings.rooms.called(run) or command
                if run.gone:
                    return self._abandon(run)
                if isinstance(command, Refuse):
                    self._settings.rooms.leave(run)
                    try:
                        return await run.refuse(command, send)
                    finally:
                        self._tell(run)
                        forget_attempt(run, error)
                if not queued:
                    run = run.again(receive, send)
                queued = False
                context = run.context.copy()
                context.run(running.set, run)
                try:
                    result = await _Within(context, self._run_app(run))
                except Exception as exc:
                    error = run.broken or exc
                except BaseException:
                    await self._undo_or_abandon(run)
                    self._abandon(run)
                    raise
                finally:
                    run.over = True
        finally:
            run.forget_body()
            self._settings.rooms.leave(run)
            error = None  # or the traceback, which holds this frame, would be a reference cycle
            if tasks is not None:
                await tasks.close()

    def _ended(self, run: Run, error: Exception | None) -> Command:
        """What to do; the waiting room hears of it at once."""
        sealed = run.sealed or ("recording" if run.body_is_taken else None)
        if sealed is not None:
            run.exchange.seal(sealed)
        run.attempt.look_for_mark()
        return self._settings.rooms.ended(
            run,
            failure=None if error is None else classify(error, known=run.attempt.known),
            raised=error is not None,
            status=run.status,
        )

    async def _finish(self, run: Run, *, failed: bool) -> None:
        try:
            if not (failed and run.is_uncommitted(run.status)):
                await run.release()
        except Exception:
            if not failed:
                raise
            log_trouble("what the app had sent before it failed can't be sent")
        finally:
            await (undo if failed else release)(run)
            rooms = self._settings.rooms
            if rooms.open and not failed:
                rooms.done(run, run.status)
            self._tell(run)

    async def _run_app(self, run: Run) -> Any:
        result = await self.app(run.request, run.receive, run.send)
        if self._settings.units:
            await run.commit()
        return result

    async def _undo_or_abandon(self, run: Run) -> None:
        try:
            await undo(run)
        except BaseException:
            self._abandon(run)
            raise

    def _abandon(self, run: Run) -> None:
        """Nobody waits for the answer any more; the failures are still worth a log record (G7)."""
        run.exchange.abandon()
        self._tell(run)

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
        """Let nobody wait any more, since the server shuts down: 503 to all who do."""
        self._settings.rooms.close()


class _Within:
    """Awaits a coroutine with every step of it inside a context.

    A new task would do that as well, but cancel scopes belong to the task that entered them.
    """

    def __init__(self, context: contextvars.Context, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._context = context
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[Any], Any] = self._coroutine.send
        value: Any = None
        awaited = traceback = None
        try:
            while True:
                try:
                    awaited = self._context.run(step, value)
                except StopIteration as stop:
                    return stop.value
                try:
                    value = yield awaited
                    step = self._coroutine.send
                except BaseException as exc:  # handed on, not handled
                    # Without this frame: classify goes by whose frame is the last.
                    traceback = exc.__traceback__ and exc.__traceback__.tb_next
                    value, step = exc.with_traceback(traceback), self._coroutine.throw
        finally:
            # Or an exception that was thrown in, and has this frame in its traceback, is a cycle.
            value = awaited = traceback = None


def _find_endpoint(scope: Scope) -> object:
    handler = scope.get("route_handler")  # Litestar's; that of a mounted app has no methods
    if hasattr(handler, "http_methods"):
        return handler
    endpoint = scope.get("endpoint")
    return endpoint if endpoint is not None else getattr(scope.get("route"), "endpoint", None)
