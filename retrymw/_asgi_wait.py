"""Waiting for one's turn under ASGI, and listening for the client's leaving meanwhile."""

from __future__ import annotations

import anyio

from retrymw._asgi_run import Run
from retrymw._core.policy import is_async
from retrymw._tasks import Tasks
from retrymw._threads import PINGING, in_thread
from retrymw._waiting import Place, WaitingRooms

__all__ = ["wait_turn"]


async def wait_turn(rooms: WaitingRooms, run: Run, after: float, tasks: Tasks) -> None:
    """Return when it is the run's turn, when it can wait no longer, or when the client has left.

    Args:
        rooms: where its place is.
        run: one that has failed, or that has not begun.
        after: its own wait, in seconds.
        tasks: a ping lives in there.
    """
    place = run.place
    if place is None or place.state == "over":
        return
    rooms.wait(place, after)
    heard = False
    while not heard or place.state == "waiting":
        if rooms.ping_due(place):
            tasks.start_soon(_ping, rooms, place)
        deadline = anyio.current_time() + rooms.alarm(place)
        with anyio.CancelScope(deadline=deadline) as scope:
            place.wake = scope.cancel
            if place.state != "waiting":
                scope.cancel()
            await run.listen()
        place.wake = None
        if run.gone:
            return
        heard = True
        rooms.tick(place)


async def _ping(rooms: WaitingRooms, place: Place) -> None:
    """Ask the database whether it is there; on behalf of all who wait for it."""
    room = place.room
    ping = room.database.ping
    error: BaseException | None = None
    try:
        await (ping() if is_async(ping) else in_thread(ping, abandon=True, limited=PINGING))
    except BaseException as exc:
        error = exc
        if not isinstance(exc, Exception):
            raise
    finally:
        rooms.pinged(room, error)
        error = None  # or the traceback, which holds this frame, would be a reference cycle
