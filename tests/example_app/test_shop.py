"""The data layer, on real servers."""

from __future__ import annotations

import pytest

from example_app.database import Database
from example_app.model import Invalid, NewOrder, NewStock, NotFound, Order, Product, SoldOut
from example_app.servers import PrivateServer
from example_app.shop import Shop

MUG = "mug-red-s"


@pytest.fixture
def shop(database: Database) -> Shop:
    """A shop that is open."""
    return Shop(database)


def test_pages(shop: Shop) -> None:
    """The pages have every product once, in order."""
    pages = [shop.products()]
    while pages[-1]:
        pages.append(shop.products(after=pages[-1][-1].sku))
    skus = [product.sku for page in pages for product in page]
    assert [len(page) for page in pages] == [50, 40, 0]
    assert skus == sorted(set(skus))


def test_opened_twice(shop: Shop) -> None:
    """Opening an open shop changes nothing."""
    shop.set_stock(MUG, NewStock(7))
    shop.open()
    assert shop.product(MUG).stock == 7


def test_product(shop: Shop) -> None:
    """A product is found by its sku."""
    assert shop.product(MUG) == Product(MUG, "red mug, S", 541, 1000)


def test_order(shop: Shop, server: PrivateServer) -> None:
    """An order is stored, and what it takes is taken off the shelf."""
    order = shop.place_order(NewOrder("r1", MUG, 3))
    assert order == Order("r1", MUG, 3, id=order.id)
    assert server.execute("SELECT id, reference, sku, quantity FROM shop_order") == [
        (order.id, "r1", MUG, 3)
    ]
    assert shop.product(MUG).stock == 997


@pytest.mark.parametrize(
    ("order", "error"),
    [
        (NewOrder("r1", "unicorn", 1), NotFound),
        (NewOrder("r1", MUG, 1001), SoldOut),
        (NewOrder("r1", MUG, 0), Invalid),
    ],
)
def test_order_that_cannot_be(
    shop: Shop, server: PrivateServer, order: NewOrder, error: type[Exception]
) -> None:
    """An order that can't be fulfilled changes nothing."""
    with pytest.raises(error):
        shop.place_order(order)
    assert server.execute("SELECT * FROM shop_order") == []
    assert shop.product(MUG).stock == 1000


def test_stock(shop: Shop) -> None:
    """A stock is what was said last, also when that is said twice."""
    assert shop.set_stock(MUG, NewStock(5)).stock == 5
    assert shop.set_stock(MUG, NewStock(5)) == shop.product(MUG)


@pytest.mark.parametrize(("sku", "stock", "error"), [("unicorn", 5, NotFound), (MUG, -1, Invalid)])
def test_stock_that_cannot_be(shop: Shop, sku: str, stock: int, error: type[Exception]) -> None:
    """Only products have a stock, and it is not negative."""
    with pytest.raises(error):
        shop.set_stock(sku, NewStock(stock))


def test_export_and_upload(shop: Shop) -> None:
    """The exported list may be uploaded again, and changes nothing."""
    exported = "".join(shop.export())
    assert exported.startswith("sku,name,price,stock\r\n")
    assert shop.upload(exported.encode()) == 90
    assert "".join(shop.export()) == exported


def test_export_of_nothing(shop: Shop, server: PrivateServer) -> None:
    """An empty shop exports the heading."""
    server.execute("DELETE FROM shop_product")
    assert "".join(shop.export()) == "sku,name,price,stock\r\n"


def test_upload(shop: Shop) -> None:
    """An upload changes products that exist, and adds those that don't."""
    text = f'sku,name,price,stock\n{MUG},"red mug, small",9,1\nzebra,"the ""zebra""",10,2\n'
    assert shop.upload(text.encode()) == 2
    assert shop.product(MUG) == Product(MUG, "red mug, small", 9, 1)
    assert shop.product("zebra") == Product("zebra", 'the "zebra"', 10, 2)


@pytest.mark.parametrize(
    "data", [b"sku,name\na,b\n", b"sku,name,price,stock\na,b,c,d\n", b"\xff", b"sku,name\na"]
)
def test_upload_of_nonsense(shop: Shop, data: bytes) -> None:
    """What is no product list is refused."""
    with pytest.raises(Invalid):
        shop.upload(data)


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"stock": "many"}', b"\xff"])
def test_json_nonsense(text: bytes) -> None:
    """What is no stock and no order is refused."""
    for model in (NewStock, NewOrder):
        with pytest.raises(Invalid):
            model.from_json(text)
