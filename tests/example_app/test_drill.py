"""The drill, its verdicts, and the command line."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import httpx
import pytest

from example_app.drill.load import Tally
from example_app.drill.report import Books, broken_promises
from retrymw.testing.servers import PostgreSQL

PROGRAM = (sys.executable, "-m", "example_app")
GET = httpx.Request("GET", "http://shop/products")
POST = httpx.Request("POST", "http://shop/orders")
ALL_WELL = Books(acknowledged=1, stored=1, duplicates=0, missing=0)


def run(*arguments: str, database: str = "") -> tuple[int, str]:
    """The exit status and output of the program."""
    done = subprocess.run(
        [*PROGRAM, *arguments],
        env={**os.environ, "DATABASE_URL": database},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


def numbers(output: str, row: str) -> list[int]:
    """The two numbers in a row of the table."""
    found = re.search(rf"│ +{row} +│ +(\d+) │ +(\d+) │", output)
    assert found is not None, output
    return [int(number) for number in found.groups()]


def test_drill() -> None:
    """A short drill shows that requests are lost without retrymw, and none with it."""
    status, output = run("drill", "--seconds=3")
    assert status == 0, output
    assert re.search(r"without retrymw ┃ with retrymw", output)
    without, protected = numbers(output, "500")
    assert without > 0
    assert protected == 0
    assert numbers(output, "replays")[1] > 0
    assert min(numbers(output, "orders acknowledged")) > 0
    assert numbers(output, "more than once")[1] == 0
    assert numbers(output, "acknowledged, not stored")[1] == 0


def test_drill_on_a_database_of_yours(postgresql: PostgreSQL) -> None:
    """A database that is not the drill's own is not restarted, and the drill says so."""
    started = postgresql.execute("SELECT pg_postmaster_start_time()")
    status, output = run("drill", "--seconds=1", "--app=fastapi", database=postgresql.url)
    assert status == 0, output
    assert "This database is yours" in output
    assert numbers(output, "replays")[1] > 0
    assert postgresql.execute("SELECT pg_postmaster_start_time()") == started


@pytest.mark.parametrize(
    ("app", "number"), [("starlette", signal.SIGTERM), ("flask", signal.SIGINT)]
)
def test_serve(app: str, number: signal.Signals) -> None:
    """A server that is interrupted takes its database along."""
    command = [*PROGRAM, "serve", f"--app={app}", "--database=embedded", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        database = urlsplit(process.stdout.readline().split()[-1])
        try:
            url = process.stdout.readline().split()[-1]
            answer = httpx.get(url, timeout=30)
        finally:
            process.send_signal(number)
    assert (answer.status_code, len(answer.json())) == (200, 50)
    with socket.socket() as client:
        assert client.connect_ex((database.hostname or "", database.port or 0)) != 0


@pytest.mark.parametrize(
    ("arguments", "database", "message"),
    [
        (["serve", "--port=0"], "sqlite:///shop", "'sqlite'; allowed: postgresql://, mysql://"),
        (["serve", "--port=0"], "postgresql://127.0.0.1:1/", "Connection refused"),
        (["serve", "--port=0", "--outage-every=1"], "postgresql://127.0.0.1:1/", "refused"),
        (["drill"], "mysql://127.0.0.1:1/", "Can't connect to MySQL server"),
    ],
)
def test_unusable_database(arguments: list[str], database: str, message: str) -> None:
    """A database that can't be used is an error message, not a traceback."""
    status, output = run(*arguments, database=database)
    assert status == 1
    assert message in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("request_", "status", "headers", "verdict"),
    [
        (GET, 200, {"Retry-Attempts": "3"}, "2xx"),
        (GET, 500, {}, "500"),
        (POST, 503, {"Retry-Outcome": "exhausted"}, "503"),
        (POST, 503, {"Retry-Outcome": "unknown"}, "503, outcome unknown"),
        (POST, 503, {"Retry-Outcome": "committed"}, "503, outcome unknown"),
        (GET, 503, {"Retry-Outcome": "unknown"}, "503"),
        (POST, 503, {}, "503"),
        (POST, 409, {}, "other"),
    ],
)
def test_verdict(
    request_: httpx.Request, status: int, headers: dict[str, str], verdict: str
) -> None:
    """Only an answer, or what may have been committed, is not lost."""
    tally = Tally()
    tally.write_down(request_, httpx.Response(status, headers=headers))
    assert list(tally.verdicts) == [verdict]
    assert bool(broken_promises(tally, ALL_WELL)) is (
        verdict not in ("2xx", "503, outcome unknown")
    )
    assert tally.replays == int(headers.get("Retry-Attempts", "1")) - 1


def test_no_answer() -> None:
    """A request without an answer is lost."""
    tally = Tally()
    tally.write_down(GET, httpx.ReadError("reset"))
    assert broken_promises(tally, ALL_WELL) == [
        "GET /products, while starting: no answer (ReadError('reset'))"
    ]


@pytest.mark.parametrize(
    "books",
    [
        Books(acknowledged=2, stored=2, duplicates=1, missing=0),
        Books(acknowledged=2, stored=1, duplicates=0, missing=1),
    ],
)
def test_books(books: Books) -> None:
    """A duplicate is a broken promise, and so is an acknowledged order that is not there."""
    assert len(broken_promises(Tally(), books)) == 1
