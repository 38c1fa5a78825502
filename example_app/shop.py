"""The shop: what it sells, and what was ordered. All SQL is here, and nothing of HTTP or retrymw.

Every change is one transaction, committed explicitly, once, as the last thing that happens. That is
what makes it right to mark the endpoint of an order ``@rollback_safe``.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from dataclasses import astuple, fields

from example_app.database import Cursor, Database
from example_app.model import Invalid, NewOrder, NewStock, NotFound, Order, Product, SoldOut

PRODUCTS = """
    CREATE TABLE IF NOT EXISTS shop_product (
        sku VARCHAR(40) PRIMARY KEY,
        name VARCHAR(200) NOT NULL,
        price INTEGER NOT NULL,
        stock INTEGER NOT NULL
    )
"""
# In a shop of yours the reference is UNIQUE. Here it isn't, so that duplicates can be counted.
ORDERS = """
    CREATE TABLE IF NOT EXISTS shop_order (
        id SERIAL PRIMARY KEY,
        reference VARCHAR(40) NOT NULL,
        sku VARCHAR(40) NOT NULL REFERENCES shop_product (sku),
        quantity INTEGER NOT NULL
    )
"""
UPSERT = {
    "mysql": """
        INSERT INTO shop_product (sku, name, price, stock) VALUES (%s, %s, %s, %s)
        ON DUPLICATE KEY UPDATE name = VALUES(name), price = VALUES(price), stock = VALUES(stock)
    """,
    "postgresql": """
        INSERT INTO shop_product (sku, name, price, stock) VALUES (%s, %s, %s, %s)
        ON CONFLICT (sku) DO UPDATE
        SET name = excluded.name, price = excluded.price, stock = excluded.stock
    """,
}
ONE = "SELECT sku, name, price, stock FROM shop_product WHERE sku = %s"
PAGE = "SELECT sku, name, price, stock FROM shop_product WHERE sku > %s ORDER BY sku LIMIT 50"
SELL = "UPDATE shop_product SET stock = stock - %s WHERE sku = %s"
STORE = "INSERT INTO shop_order (reference, sku, quantity) VALUES (%s, %s, %s) RETURNING id"
RESTOCK = "UPDATE shop_product SET stock = %s WHERE sku = %s"


class Shop:
    """The shop on a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open(self) -> None:
        """Create the tables that are missing, and stock the shelves if they are empty."""
        with self._database.connection() as connection, connection.cursor() as cursor:
            cursor.execute(PRODUCTS)
            cursor.execute(ORDERS)
            cursor.execute("SELECT count(*) FROM shop_product")
            if cursor.fetchone()[0] == 0:
                cursor.executemany(UPSERT[self._database.dialect], [*map(astuple, _samples())])
            connection.commit()

    def products(self, after: str = "") -> list[Product]:
        """A page of products in the order of their sku, from the one after ``after``."""
        with self._database.connection() as connection, connection.cursor() as cursor:
            cursor.execute(PAGE, (after,))
            return [Product(*row) for row in cursor.fetchall()]

    def product(self, sku: str) -> Product:
        """One product; raises NotFound."""
        with self._database.connection() as connection, connection.cursor() as cursor:
            return _find(cursor, sku)

    def place_order(self, new: NewOrder) -> Order:
        """Take the goods off the shelf and store the order; raises NotFound, SoldOut or Invalid."""
        if new.quantity < 1:
            raise Invalid("a quantity is 1 or more")
        with self._database.connection() as connection, connection.cursor() as cursor:
            product = _find(cursor, new.sku, ONE + " FOR UPDATE")
            if product.stock < new.quantity:
                raise SoldOut(f"of {new.sku!r} there are only {product.stock}")
            cursor.execute(SELL, (new.quantity, new.sku))
            cursor.execute(STORE, (new.reference, new.sku, new.quantity))
            order = Order(new.reference, new.sku, new.quantity, id=cursor.fetchone()[0])
            connection.commit()
            return order

    def set_stock(self, sku: str, new: NewStock) -> Product:
        """Say how many there are of a product; raises NotFound or Invalid."""
        if new.stock < 0:
            raise Invalid("a stock is 0 or more")
        with self._database.connection() as connection, connection.cursor() as cursor:
            cursor.execute(RESTOCK, (new.stock, sku))
            product = _find(cursor, sku)
            connection.commit()
            return product

    def export(self) -> Iterator[str]:
        """All products as CSV, page by page; on PostgreSQL no connection waits for a slow client.

        The heading comes with the first page, not before it: once the client has a byte of the
        answer, the request can't be replayed any more.
        """
        page, heading = self.products(), [[field.name for field in fields(Product)]]
        while page or heading:
            text = io.StringIO()
            csv.writer(text).writerows([*heading, *map(astuple, page)])
            yield text.getvalue()
            page, heading = self.products(after=page[-1].sku) if page else [], []

    def upload(self, data: bytes) -> int:
        """Add or change the products of a CSV file like the exported one; raises Invalid."""
        try:
            rows = csv.DictReader(io.StringIO(data.decode(), newline=""))
            products = [
                (row["sku"], row["name"], int(row["price"]), int(row["stock"])) for row in rows
            ]
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise Invalid("a product list is CSV with sku, name, price and stock") from error
        with self._database.connection() as connection, connection.cursor() as cursor:
            cursor.executemany(UPSERT[self._database.dialect], products)
            connection.commit()
        return len(products)


def _find(cursor: Cursor, sku: str, query: str = ONE) -> Product:
    cursor.execute(query, (sku,))
    row = cursor.fetchone()
    if row is None:
        raise NotFound(f"there is no product {sku!r}")
    return Product(*row)


def _samples() -> Iterator[Product]:
    things = ("bag", "cap", "mug", "scarf", "shirt", "towel")
    colours = ("black", "blue", "green", "red", "white")
    for price, (thing, colour, size) in enumerate(itertools.product(things, colours, "lms"), 500):
        yield Product(f"{thing}-{colour}-{size}", f"{colour} {thing}, {size.upper()}", price, 1000)
