"""Which database a URL stands for."""

from __future__ import annotations

from contextlib import suppress

import pytest

from example_app.database import Database, MariaDB, PostgreSQL, open_database


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [
        ("postgresql", PostgreSQL),
        ("postgres", PostgreSQL),
        ("postgresql+psycopg", PostgreSQL),
        ("mysql", MariaDB),
        ("mysql+pymysql", MariaDB),
        ("mariadb", MariaDB),
    ],
)
def test_scheme(scheme: str, kind: type[Database]) -> None:
    """The scheme says which database it is, with or without a driver's name."""
    assert isinstance(open_database(f"{scheme}://me:secret@localhost/shop"), kind)


def test_unknown_scheme() -> None:
    """Another scheme is refused, with what is allowed."""
    with pytest.raises(ValueError, match="'sqlite'; allowed: postgresql://, mysql://"):
        open_database("sqlite:///shop")


def test_options() -> None:
    """What follows the question mark reaches the driver, which knows its own options only."""
    open_database("mysql://me@localhost/shop?ssl_disabled=1")
    with pytest.raises(TypeError, match="nonsense='1'"):
        open_database("mysql://me@localhost/shop?nonsense=1")


def test_commit_is_explicit(database: Database) -> None:
    """What the shop does not commit is not stored."""
    with (
        suppress(LookupError),
        database.connection() as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("UPDATE shop_product SET stock = 1 WHERE sku = 'mug-red-s'")
        raise LookupError
    with database.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT stock FROM shop_product WHERE sku = 'mug-red-s'")
        assert cursor.fetchone()[0] == 1000
