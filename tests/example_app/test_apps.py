"""The three apps, with real servers behind them."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import anyio
import httpx
import pytest

from example_app import fastapi_app, flask_app, starlette_app
from example_app.database import Database, open_database
from example_app.servers import PrivateServer, url_of
from retrymw.testing import FaultProxy
from tests.servers.situations.base import wait_until

APPS = {
    "starlette": starlette_app.create_app,
    "fastapi": fastapi_app.create_app,
    "flask": flask_app.create_app,
}
MUG = "/products/mug-red-s"
ORDER = {"reference": "r1", "sku": "mug-red-s", "quantity": 2}
LIST = b"sku,name,price,stock\nmug-red-s,red mug,5,6\n"


class Client:
    """Asks one of the apps."""

    def __init__(self, name: str, database: Database, *, protected: bool = True) -> None:
        app: Any = APPS[name](database, protected=protected)
        self._transport = (
            httpx.WSGITransport(app, raise_app_exceptions=False)
            if name == "flask"
            else httpx.ASGITransport(app, raise_app_exceptions=False)
        )

    def __call__(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        url = f"http://shop{path}"
        if isinstance(self._transport, httpx.BaseTransport):
            with httpx.Client(transport=self._transport) as http:
                return http.request(method, url, **arguments)
        return anyio.run(partial(self._ask, method, url, **arguments))

    async def _ask(self, method: str, url: str, **arguments: Any) -> httpx.Response:
        assert isinstance(self._transport, httpx.AsyncBaseTransport)
        async with httpx.AsyncClient(transport=self._transport) as http:
            return await http.request(method, url, **arguments)


@pytest.fixture
def proxy(request: pytest.FixtureRequest, server: PrivateServer, database: Database) -> FaultProxy:
    """A fault proxy before the server."""
    name = "mariadb_proxy" if server.protocol == "mysql" else "postgresql_proxy"
    proxy: FaultProxy = request.getfixturevalue(name)
    return proxy


@pytest.fixture(params=APPS)
def client(request: pytest.FixtureRequest, server: PrivateServer, proxy: FaultProxy) -> Client:
    """Asks an app with retrymw, whose database is behind the proxy."""
    url = url_of(server).replace(f":{server.port}/", f":{proxy.port}/")
    return Client(request.param, open_database(url))


def stored(server: PrivateServer) -> int:
    """How many orders there are."""
    return int(server.execute("SELECT count(*) FROM shop_order")[0][0])


@pytest.mark.parametrize("protected", [False, True])
@pytest.mark.parametrize("name", APPS)
def test_same_answers(
    name: str, protected: bool, database: Database, server: PrivateServer
) -> None:
    """All apps answer alike, and with the middleware as without."""
    ask = Client(name, database, protected=protected)

    page = ask("GET", "/products")
    assert (page.status_code, len(page.json())) == (200, 50)
    assert page.json()[0] == {
        "sku": "bag-black-l", "name": "black bag, L", "price": 500, "stock": 1000
    }  # fmt: skip
    assert len(ask("GET", "/products", params={"after": page.json()[-1]["sku"]}).json()) == 40

    mug = {"sku": "mug-red-s", "name": "red mug, S", "price": 541, "stock": 1000}
    assert ask("GET", MUG).json() == mug
    assert ask("PUT", f"{MUG}/stock", json={"stock": 3}).json() == {**mug, "stock": 3}

    order = ask("POST", "/orders", json=ORDER)
    number = server.execute("SELECT id FROM shop_order")[0][0]
    assert (order.status_code, order.json()) == (201, {**ORDER, "id": number})
    assert ask("GET", MUG).json() == {**mug, "stock": 1}

    sold_out = ask("POST", "/orders", json=ORDER)
    assert sold_out.status_code == 409
    assert sold_out.json() == {"detail": "of 'mug-red-s' there are only 1"}
    missing = ask("GET", "/products/unicorn")
    assert missing.status_code == 404
    assert missing.json() == {"detail": "there is no product 'unicorn'"}
    assert ask("POST", "/orders", json={"sku": "mug-red-s"}).status_code == 422
    assert ask("PUT", f"{MUG}/stock", json={"stock": "many"}).status_code == 422

    upload = ask("POST", "/products.csv", content=LIST)
    assert (upload.status_code, upload.json()) == (200, {"products": 1})
    export = ask("GET", "/products.csv")
    assert export.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert len(export.text.splitlines()) == 91
    assert "mug-red-s,red mug,5,6" in export.text.splitlines()
    assert stored(server) == 1


@pytest.mark.parametrize("name", APPS)
def test_unprotected(name: str, database: Database, server: PrivateServer) -> None:
    """Without the middleware a request that finds no connection left is a 500."""
    ask = Client(name, database, protected=False)
    with server.fill():
        assert ask("GET", MUG).status_code == 500


def test_order_whose_connection_dies(
    client: Client, proxy: FaultProxy, server: PrivateServer
) -> None:
    """Wherever its connection is cut, an order is placed once; only a COMMIT is not replayed."""
    outcomes: list[tuple[int, str | None]] = []
    while not outcomes or outcomes[-1][1]:
        proxy.cut("reset", at=len(outcomes) + 1)
        answer = client("POST", "/orders", json={**ORDER, "reference": f"r{len(outcomes)}"})
        outcomes.append((answer.status_code, answer.headers.get("Retry-Outcome")))
    assert outcomes[-2:] == [(503, "unknown"), (201, None)]  # the last one met no fault
    assert len(outcomes) >= 5
    assert set(outcomes[:-2]) == {(201, "recovered")}
    # The last order waited for the lock that the one before had on the product: all is done.
    orders = server.execute("SELECT reference FROM shop_order ORDER BY id")
    assert orders == [(f"r{number}",) for number in range(len(outcomes))]


@pytest.mark.parametrize(("at", "count"), [("before-commit", 0), ("commit", 1)])
def test_order_whose_commit_is_not_answered(
    client: Client,
    proxy: FaultProxy,
    server: PrivateServer,
    at: Literal["before-commit", "commit"],
    count: int,
) -> None:
    """Whether a COMMIT that is not answered was done nobody knows, so that is what the 503 says."""
    proxy.cut("reset", at=at)
    answer = client("POST", "/orders", json=ORDER)
    assert answer.status_code == 503
    assert answer.headers["Retry-Outcome"] == "unknown"
    assert "Retry-After" not in answer.headers
    assert stored(server) == count


def test_upload_whose_commit_is_not_answered(client: Client, proxy: FaultProxy) -> None:
    """An upload is marked idempotent, so it is done again, with the whole list."""
    proxy.cut("reset", at="commit")
    answer = client("POST", "/products.csv", content=LIST)
    assert (answer.status_code, answer.json()) == (200, {"products": 1})
    assert answer.headers["Retry-Attempts"] == "2"
    assert client("GET", MUG).json()["price"] == 5


def test_export_that_fails_to_begin(client: Client, proxy: FaultProxy) -> None:
    """An export whose first page fails is begun again: nothing of it has been sent."""
    proxy.cut("reset", at="connect", times=2)  # it, and a ping or a replay
    answer = client("GET", "/products.csv")
    assert (answer.status_code, len(answer.text.splitlines())) == (200, 91)
    assert answer.headers["Retry-Attempts"] in {"2", "3"}


def test_connections_go_back(client: Client, proxy: FaultProxy, server: PrivateServer) -> None:
    """Whatever happened, all connections are free afterwards."""
    proxy.cut("reset", at=1)
    client("POST", "/orders", json=ORDER)
    client("POST", "/orders", json={**ORDER, "quantity": 1001})
    client("GET", "/products.csv")
    wait_until(lambda: server.connection_count() == 0)
    with server.fill() as taken:
        assert taken == server.max_connections
