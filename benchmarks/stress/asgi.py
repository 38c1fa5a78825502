"""The shop on Starlette: one endpoint that reads, one that places orders, one without database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncmy
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import retrymw
from benchmarks.stress.patience import SECONDS, Work, around_connect, around_work
from benchmarks.stress.rows import Row
from retrymw import RetryPolicy
from retrymw.adapters.asyncmy import AsyncDatabase
from retrymw.asgi import RetryMiddleware

__all__ = ["POOL", "make_app", "order_statement", "read_statement"]

POOL: Final = 20

Endpoint = Callable[[Request], Awaitable[Response]]
Arguments = dict[str, Any]


def read_statement(hold: float) -> str:
    """A statement that keeps its connection for so many seconds."""
    return f"SELECT SLEEP({hold})" if hold else "SELECT name FROM products WHERE number = 1"


def order_statement(row: Row, number: int) -> str:
    """Store an order; once or several times, as the endpoint is marked."""
    ignore, table = ("IGNORE ", "orders_once") if row.mark == "idempotent" else ("", "orders")
    return f"INSERT {ignore}INTO {table} VALUES ({number})"  # noqa: S608  # a number


def make_app(row: Row, database: Arguments, hold: float, policy: Arguments) -> Any:
    """The ASGI app of a row.

    Args:
        row: its configuration.
        database: the arguments of ``connect``.
        hold: seconds that a GET keeps its connection on the server.
        policy: fields of the policy that differ from their defaults, for rows with retrymw.
    """
    work, adapters = _work(row, database)
    work = around_work(row.way, work)
    statement = read_statement(hold)
    forever = asyncio.Event()

    async def static(request: Request) -> Response:
        return PlainTextResponse("static")

    async def products(request: Request) -> Response:
        await work(statement)
        return JSONResponse({"products": 1})

    async def order(request: Request) -> Response:
        number = request.path_params["number"]
        await work(order_statement(row, number))
        return JSONResponse({"ordered": number})

    async def wait(request: Request) -> Response:
        await forever.wait()
        return PlainTextResponse("never")

    reading: Endpoint = products
    ordering: Endpoint = getattr(retrymw, row.mark)(order)
    if row.way != "retrymw":
        reading, ordering = _answering(reading), _answering(ordering)
    routes = [
        Route("/static", static),
        Route("/products", reading),
        Route("/orders/{number:int}", ordering, methods=["POST"]),
        Route("/wait", wait),
    ]
    app = Starlette(routes=routes)
    if row.way == "retrymw":
        app.add_middleware(RetryMiddleware, policy=RetryPolicy(**policy), databases=adapters)
    return app


def _answering(endpoint: Endpoint) -> Endpoint:
    """The endpoint, with a 503 for what it raises."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception:  # noqa: BLE001  # an app that apologises
            return PlainTextResponse("sorry", 503)

    return answer


def _work(row: Row, database: Arguments) -> tuple[Work, list[AsyncDatabase]]:
    """What connects, runs one statement, commits and gives back; and the adapters it uses."""
    if row.adapter:
        adapter = AsyncDatabase(maxsize=POOL, acquire_timeout=SECONDS, **database)

        async def adapted(statement: str) -> None:
            async with adapter.connection() as connection:
                async with connection.cursor() as cursor:
                    await cursor.execute(statement)
                await connection.commit()

        return adapted, [adapter]
    if row.pool:
        arguments = {**database, "username": database["user"]}
        arguments.pop("user")
        engine = create_async_engine(
            URL.create("mysql+asyncmy", **arguments),
            pool_size=row.pool,
            max_overflow=0,
            pool_timeout=SECONDS,
        )

        async def pooled(statement: str) -> None:
            async with engine.connect() as connection:
                await connection.exec_driver_sql(statement)
                await connection.commit()

        return pooled, []
    connect = around_connect(row.way, asyncmy.connect)

    async def connecting(statement: str) -> None:
        connection = await connect(**database)
        try:
            async with connection.cursor() as cursor:
                await cursor.execute(statement)
            await connection.commit()
        except BaseException:
            connection.close()
            raise
        await connection.ensure_closed()

    return connecting, []
