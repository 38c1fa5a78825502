"""The shop on Flask, for a server that gives each request a thread of its own."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flask import Flask, Response, request

from example_app.database import Database
from example_app.model import NewOrder, NewStock, ShopError
from example_app.shop import Shop
from retrymw import RetryPolicy, idempotent, rollback_safe
from retrymw.integrations.flask import Retry

# A waiting request keeps its thread, so by default retrymw lets no more than 4 wait. This server
# starts as many threads as are needed.
POLICY = RetryPolicy(max_waiting=100)


def create_app(database: Database, *, protected: bool = True) -> Flask:
    """The app, with retrymw or, to compare, without."""
    shop = Shop(database)
    app = Flask(__name__)

    @app.get("/products")
    def products() -> list[Any]:
        return [asdict(product) for product in shop.products(request.args.get("after", ""))]

    @app.get("/products/<sku>")
    def product(sku: str) -> dict[str, Any]:
        return asdict(shop.product(sku))

    @app.put("/products/<sku>/stock")
    def set_stock(sku: str) -> dict[str, Any]:
        return asdict(shop.set_stock(sku, NewStock.from_json(request.get_data())))

    @app.post("/orders")
    @rollback_safe  # all that an order changes is in one transaction
    def place_order() -> tuple[dict[str, Any], int]:
        return asdict(shop.place_order(NewOrder.from_json(request.get_data()))), 201

    @app.get("/products.csv")
    def export() -> Response:
        return Response(shop.export(), mimetype="text/csv")

    @app.post("/products.csv")
    @idempotent  # the same list a second time changes nothing more
    def upload() -> dict[str, int]:
        return {"products": shop.upload(request.get_data())}

    @app.errorhandler(ShopError)
    def explain(error: ShopError) -> tuple[dict[str, str], int]:
        return {"detail": str(error)}, error.status

    if protected:
        Retry(app, policy=POLICY, databases=database.adapters)
    return app
