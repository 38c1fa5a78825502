"""The shop on Starlette. Endpoints that wait for the database do so in worker threads."""

from __future__ import annotations

from dataclasses import asdict

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from example_app.database import Database
from example_app.model import NewOrder, NewStock, ShopError
from example_app.shop import Shop
from retrymw import idempotent, rollback_safe
from retrymw.asgi import RetryMiddleware


def create_app(database: Database, *, protected: bool = True) -> Starlette:
    """The app, with retrymw or, to compare, without."""
    shop = Shop(database)

    def products(request: Request) -> Response:
        after = request.query_params.get("after", "")
        return JSONResponse([asdict(product) for product in shop.products(after)])

    def product(request: Request) -> Response:
        return JSONResponse(asdict(shop.product(request.path_params["sku"])))

    async def set_stock(request: Request) -> Response:
        stock = NewStock.from_json(await request.body())
        product = await run_in_threadpool(shop.set_stock, request.path_params["sku"], stock)
        return JSONResponse(asdict(product))

    @rollback_safe  # all that an order changes is in one transaction
    async def place_order(request: Request) -> Response:
        order = NewOrder.from_json(await request.body())
        return JSONResponse(asdict(await run_in_threadpool(shop.place_order, order)), 201)

    def export(request: Request) -> Response:
        return StreamingResponse(shop.export(), media_type="text/csv")

    @idempotent  # the same list a second time changes nothing more
    async def upload(request: Request) -> Response:
        count = await run_in_threadpool(shop.upload, await request.body())
        return JSONResponse({"products": count})

    def explain(request: Request, error: ShopError) -> Response:
        return JSONResponse({"detail": str(error)}, error.status)

    return Starlette(
        routes=[
            Route("/products", products),
            Route("/products/{sku}", product),
            Route("/products/{sku}/stock", set_stock, methods=["PUT"]),
            Route("/orders", place_order, methods=["POST"]),
            Route("/products.csv", export),
            Route("/products.csv", upload, methods=["POST"]),
        ],
        exception_handlers={ShopError: explain},  # type: ignore[dict-item]  # found by class
        middleware=[Middleware(RetryMiddleware, databases=database.adapters)] if protected else [],
    )
