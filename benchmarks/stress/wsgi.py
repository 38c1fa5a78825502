"""The same shop on Flask, and on Pyramid for pyramid_retry."""

from __future__ import annotations

from typing import Any

import pymysql
import repoze.retry
from flask import Flask
from pyramid.config import Configurator  # type: ignore[import-untyped]  # no types
from pyramid.request import Request  # type: ignore[import-untyped]
from pyramid.response import Response  # type: ignore[import-untyped]
from pyramid_retry import mark_error_retryable  # type: ignore[import-untyped]

import retrymw
from benchmarks.stress.asgi import Arguments, order_statement, read_statement
from benchmarks.stress.patience import SyncWork, around_work_sync
from benchmarks.stress.rows import Row
from retrymw import RetryPolicy
from retrymw.integrations.flask import Retry

__all__ = ["make_app"]

_ERRORS = (pymysql.err.OperationalError, pymysql.err.InterfaceError, OSError)


def make_app(row: Row, database: Arguments, hold: float, policy: Arguments) -> Any:
    """The WSGI app of a row; arguments as for the ASGI app."""

    def connecting(statement: str) -> None:
        connection = pymysql.connect(**database, ssl_disabled=True)
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            connection.commit()

    work = around_work_sync(row.way, connecting)
    if row.way == "pyramid_retry":
        return _pyramid(row, work, hold)
    app = Flask("shop", static_folder=None)  # /static is ours

    @app.get("/static")
    def static() -> str:
        return "static"

    @app.get("/products")
    def products() -> dict[str, int]:
        work(read_statement(hold))
        return {"products": 1}

    @app.post("/orders/<int:number>")
    @getattr(retrymw, row.mark)  # type: ignore[untyped-decorator]  # by its name
    def order(number: int) -> dict[str, int]:
        work(order_statement(row, number))
        return {"ordered": number}

    if row.way == "repoze.retry":
        app.config["PROPAGATE_EXCEPTIONS"] = True
        silent = 9  # after that many tries it would write tracebacks
        return repoze.retry.Retry(
            app, tries=8, retryable=_ERRORS, delay=0.08, log_after_try_count=silent
        )
    if row.way == "retrymw":
        Retry(app, policy=RetryPolicy(**policy))
    else:
        app.register_error_handler(Exception, lambda _: ("sorry", 503))
    return app


def _pyramid(row: Row, work: SyncWork, hold: float) -> Any:
    for error in _ERRORS:
        mark_error_retryable(error)

    def static(request: Request) -> Response:
        return Response("static")

    def products(request: Request) -> Response:
        work(read_statement(hold))
        return Response(json_body={"products": 1})

    def order(request: Request) -> Response:
        number = int(request.matchdict["number"])
        work(order_statement(row, number))
        return Response(json_body={"ordered": number})

    config = Configurator(settings={"retry.attempts": 6})
    config.include("pyramid_retry")
    for name, pattern, view in (
        ("static", "/static", static),
        ("products", "/products", products),
        ("orders", "/orders/{number}", order),
    ):
        config.add_route(name, pattern)
        config.add_view(view, route_name=name)
    return config.make_wsgi_app()
