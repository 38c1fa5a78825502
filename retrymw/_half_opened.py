"""Pools of aiomysql and asyncmy, which forget what they have opened if they can't open it all."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["is_pool", "open_pool"]


def is_pool(connect: Callable[..., Any]) -> bool:
    """Whether it is one that leaves connections open when it can't open as many as it should."""
    modules = ("aiomysql.pool", "asyncmy.pool")
    if isinstance(connect, functools.partial):
        connect = connect.func
    return (
        getattr(connect, "__module__", None) in modules
        and getattr(connect, "__name__", None) == "create_pool"
    )


async def open_pool(create_pool: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``create_pool(…)``, which closes what it has opened when the database lets no more in."""
    if isinstance(create_pool, functools.partial):
        args, kwargs = (*create_pool.args, *args), {**create_pool.keywords, **kwargs}
        create_pool = create_pool.func
    given = inspect.signature(create_pool).bind(*args, **kwargs)
    given.apply_defaults()
    least, most = given.arguments["minsize"], given.arguments["maxsize"]
    if not 0 < least <= (most or least):
        return await create_pool(*args, **kwargs)  # which knows what is wrong, or opens none
    given.arguments["minsize"] = 0
    pool = await create_pool(*given.args, **given.kwargs)
    try:
        opened: list[Any] = []
        while len(opened) < least:
            opened.append(await pool.acquire())
        for connection in opened:
            await pool.release(connection)
    except BaseException:
        pool.terminate()
        await pool.wait_closed()
        raise
    pool._minsize = least
    return pool
