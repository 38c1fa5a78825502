"""What the shop deals in, and what can go wrong with it."""

from __future__ import annotations

import json
from dataclasses import dataclass


class ShopError(Exception):
    """What the customer asked for can't be done; ``status`` is for HTTP."""

    status = 400


class NotFound(ShopError):
    """There is no such product."""

    status = 404


class SoldOut(ShopError):
    """There is less of the product than was ordered."""

    status = 409


class Invalid(ShopError):
    """The request makes no sense."""

    status = 422


@dataclass(frozen=True)
class Product:
    """A product; its price is in cents."""

    sku: str
    name: str
    price: int
    stock: int


@dataclass(frozen=True)
class NewStock:
    """How many there are of a product now."""

    stock: int

    @classmethod
    def from_json(cls, text: bytes) -> NewStock:
        """Read a request's body; raises Invalid."""
        try:
            return cls(int(json.loads(text)["stock"]))
        except (KeyError, TypeError, ValueError) as error:
            raise Invalid("a stock is a number") from error


@dataclass(frozen=True)
class NewOrder:
    """What a customer orders; the reference is the customer's own."""

    reference: str
    sku: str
    quantity: int

    @classmethod
    def from_json(cls, text: bytes) -> NewOrder:
        """Read a request's body; raises Invalid."""
        try:
            data = json.loads(text)
            return cls(str(data["reference"]), str(data["sku"]), int(data["quantity"]))
        except (KeyError, TypeError, ValueError) as error:
            raise Invalid("an order has a reference, a sku and a quantity") from error


@dataclass(frozen=True)
class Order(NewOrder):
    """An order that is stored."""

    id: int
