"""The shop on FastAPI, which runs endpoints that are plain functions in worker threads."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse

from example_app.database import Database
from example_app.model import NewOrder, NewStock, Order, Product, ShopError
from example_app.shop import Shop
from retrymw import idempotent, rollback_safe
from retrymw.asgi import RetryMiddleware


def create_app(database: Database, *, protected: bool = True) -> FastAPI:
    """The app, with retrymw or, to compare, without."""
    shop = Shop(database)
    app = FastAPI(title="Shop")
    if protected:
        app.add_middleware(RetryMiddleware, databases=database.adapters)

    @app.get("/products")
    def products(after: str = "") -> list[Product]:
        return shop.products(after)

    @app.get("/products/{sku}")
    def product(sku: str) -> Product:
        return shop.product(sku)

    @app.put("/products/{sku}/stock")
    def set_stock(sku: str, stock: NewStock) -> Product:
        return shop.set_stock(sku, stock)

    @app.post("/orders", status_code=201)
    @rollback_safe  # all that an order changes is in one transaction
    def place_order(order: NewOrder) -> Order:
        return shop.place_order(order)

    @app.get("/products.csv")
    def export() -> StreamingResponse:
        return StreamingResponse(shop.export(), media_type="text/csv")

    @app.post("/products.csv")
    @idempotent  # the same list a second time changes nothing more
    async def upload(request: Request) -> dict[str, int]:
        return {"products": await run_in_threadpool(shop.upload, await request.body())}

    @app.exception_handler(ShopError)
    def explain(request: Request, error: ShopError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, error.status)

    return app
