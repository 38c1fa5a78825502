"""Whose endpoint an exchange is of, where apps are in each other or call each other."""

from typing import Any

import anyio
import bottle
import falcon
import httpx
import litestar
import pytest
import werkzeug.test
from flask import Flask
from starlette.applications import Starlette
from starlette.routing import Route

import retrymw.asgi
import retrymw.integrations.bottle
import retrymw.integrations.falcon
import retrymw.integrations.flask
import retrymw.integrations.litestar
import retrymw.wsgi
from retrymw import DisconnectionError, idempotent

prices = Flask("prices")


@prices.get("/")
@idempotent
def price() -> str:
    return "3"


retrymw.integrations.flask.Retry(prices)


class Charges:
    """Stands for an effect that can't be undone: it calls an app, then fails."""

    def __init__(self) -> None:
        self.count = 0

    def charge(self, *_: Any) -> Any:
        self.count += 1
        assert prices.test_client().get("/").text == "3"
        raise DisconnectionError("the database has gone away")


def starlette_app(charge: Any) -> Any:
    return retrymw.asgi.RetryMiddleware(Starlette(routes=[Route("/", charge, methods=["POST"])]))


def plain_asgi_app(charge: Any) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        charge()

    return retrymw.asgi.RetryMiddleware(app)


def litestar_app(charge: Any) -> Any:
    @litestar.post("/")
    async def handler() -> None:
        charge()

    return retrymw.integrations.litestar.Retry(litestar.Litestar([handler]))


def plain_wsgi_app(charge: Any) -> Any:
    return retrymw.wsgi.RetryMiddleware(charge)


def bottle_app(charge: Any) -> Any:
    app = bottle.Bottle()
    app.post("/")(charge)
    retrymw.integrations.bottle.Retry(app)
    return app


def falcon_app(charge: Any) -> Any:
    """It calls before it is routed itself."""
    app = falcon.App()
    app.add_middleware(type("Component", (), {"process_request": charge})())
    return retrymw.integrations.falcon.Retry(app)


@pytest.mark.parametrize("make", [starlette_app, plain_asgi_app, litestar_app])
def test_asgi_endpoint_that_calls_an_app(make: Any) -> None:
    """G3: the mark of an app that an endpoint calls is not the endpoint's."""
    charges = Charges()

    async def post(app: Any) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            return await client.post("http://shop/")

    response = anyio.run(post, make(charges.charge))
    assert response.headers["retry-outcome"] == "not-replayable"
    assert charges.count == 1


@pytest.mark.parametrize("make", [plain_wsgi_app, bottle_app, falcon_app])
def test_wsgi_endpoint_that_calls_an_app(make: Any) -> None:
    """G3: the mark of an app that an endpoint calls is not the endpoint's."""
    charges = Charges()
    response = werkzeug.test.Client(make(charges.charge)).post("/")
    assert response.headers["retry-outcome"] == "not-replayable"
    assert charges.count == 1
