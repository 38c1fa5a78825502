"""The command line: ``python -m example_app --help``."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import get_args

import click
import psycopg
import pymysql

from example_app.database import open_database
from example_app.serve import AppName, serve
from example_app.servers import Kind, PrivateServer, outages, private_server, url_of
from example_app.shop import Shop

app_option = click.option(
    "--app",
    type=click.Choice(get_args(AppName)),
    default="starlette",
    show_default=True,
    help="The framework.",
)
database_option = click.option(
    "--database",
    type=click.Choice(get_args(Kind)),
    help="A private server, removed afterwards: PostgreSQL from a wheel, or the MariaDB that is "
    "installed here. Default: the database at $DATABASE_URL if that is set, else embedded.",
)


@click.group()
def main() -> None:
    """A small shop whose database fails, and whose customers don't notice.

    $DATABASE_URL may name a database of yours, as postgresql://... or mysql://... (MariaDB). The
    shop creates the tables shop_product and shop_order there, and leaves them behind.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    for number in (signal.SIGTERM, signal.SIGHUP):  # like Ctrl-C: take the servers along
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))


@main.command(name="serve")
@app_option
@database_option
@click.option("--port", default=8000, show_default=True, help="On 127.0.0.1; 0 for a free one.")
@click.option("--unprotected", is_flag=True, help="Leave retrymw out, to compare.")
@click.option(
    "--outage-every",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Kill the private server that often; it is back a second later.",
)
@click.option("--fd", type=int, hidden=True, help="Listen on this inherited socket instead.")
def serve_command(
    app: AppName,
    database: Kind | None,
    port: int,
    unprotected: bool,
    outage_every: float | None,
    fd: int | None,
) -> None:
    """Run the shop, to be visited with curl."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    with _listener(port, fd) as listener, _database(database, max_connections=20) as found:
        url, server = found
        if outage_every and server is None:
            raise click.UsageError("--outage-every is for private servers, not for $DATABASE_URL")
        if fd is None:
            click.echo(f"The shop: curl -i http://127.0.0.1:{listener.getsockname()[1]}/products")
        with outages(server, outage_every) if outage_every and server else nullcontext():
            serve(app, open_database(url), listener, protected=not unprotected)


@main.command(name="drill")
@app_option
@database_option
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=20,
    show_default=True,
    help="How long each of the two sides takes, at least.",
)
@click.option(
    "--clients", type=click.IntRange(1, 100), default=12, show_default=True, help="At a time."
)
@click.option("--log", type=click.Path(dir_okay=False), help="Keep the output of the app here.")
def drill_command(
    app: AppName, database: Kind | None, seconds: float, clients: int, log: str | None
) -> None:
    """Break the database under load, first without retrymw, then with it, and compare.

    All connections are killed, five times; all connections that the server can have are taken for a
    while; the server is killed and started again. To a database of yours no such thing happens: the
    drill cuts the shop's connections to it on their way.

    Exits with 1 if the side with retrymw lost a request that it promises not to lose.
    """
    from example_app.drill import drill

    # More than the customers need: it is the drill that takes them away.
    with _database(database, max_connections=clients + 8) as (url, server):
        try:
            kept = drill(app, url, server, seconds=seconds, clients=clients, log=log)
        except RuntimeError as error:
            raise click.ClickException(str(error)) from error
    sys.exit(0 if kept else 1)


def _listener(port: int, fd: int | None) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port)) if fd is None else socket.socket(fileno=fd)
    except OSError as error:
        raise click.ClickException(f"port {port}: {error.strerror}; try: --port 0") from error


@contextmanager
def _database(
    kind: Kind | None, max_connections: int
) -> Iterator[tuple[str, PrivateServer | None]]:
    """The URL of the shop's database, and its server if that is a private one."""
    url = os.environ.get("DATABASE_URL")
    if kind is None and url:
        _open_shop(url)
        yield url, None
        return
    try:
        server = private_server(kind or "embedded", max_connections)
        server.start()
    except (FileNotFoundError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    with server:
        click.echo(f"The database: {server.url}")
        _open_shop(url_of(server))
        yield url_of(server), server


def _open_shop(url: str) -> None:
    try:
        Shop(open_database(url)).open()
    except (ValueError, psycopg.Error, pymysql.Error) as error:
        raise click.ClickException(f"the database: {error}") from error


if __name__ == "__main__":
    main()
