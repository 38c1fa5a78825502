"""The accounting runs of all adapters: short ones, or by ``--accounting`` long ones on a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrymw.testing.conformance import AccountingConformance

PAGE = Path(__file__).parents[2] / "docs/reference/accounting.md"
CLIENTS, SECONDS = 200, 20
HEAD = """# Accounting

{clients} clients place orders, each in a transaction of its own, for {seconds} seconds. Every
50 ms one of the connections is reset in a statement, killed by the server, or cut after its COMMIT.
Then every answer is compared with what is stored. This page is written by the tests
(`make accounting`), on real MariaDB and PostgreSQL servers. There are {connections} connections for
all the clients; a request is replayed for ten seconds at most.

- *unknown* are answers that say `Retry-Outcome: unknown` or `committed`; *refused* all other 503s.
- *duplicates* are orders that are stored twice; *lost* ones were acknowledged, and are not stored;
  *false* ones were refused with a promise that nothing was done, and are stored; *leaked*
  connections are still held when all is over. All four must be 0.

"""
COLUMNS = {
    "requests": "requests",
    "acknowledged": "acknowledged",
    "replays": "replays",
    "unknown": "unknown",
    "refused": "refused",
    "faults": "faults",
    "duplicates": "duplicates",
    "lost": "lost",
    "unreported": "false",
    "leaked": "leaked",
}


@pytest.fixture(autouse=True, scope="session")
def _accounting(request: pytest.FixtureRequest) -> Iterator[None]:
    if not request.config.getoption("--accounting"):
        yield
        return
    AccountingConformance.clients, AccountingConformance.seconds = CLIENTS, SECONDS
    yield
    head = HEAD.format(
        clients=CLIENTS, seconds=SECONDS, connections=AccountingConformance.connections
    )
    PAGE.write_text(head + "\n".join(_table()) + "\n")


def _table() -> Iterator[str]:
    yield f"| adapter | | shell | {' | '.join(COLUMNS.values())} |"
    yield "|---|---|---|" + "---:|" * len(COLUMNS)
    for name, accounts in sorted(AccountingConformance.accounts.items()):
        found = re.fullmatch(r".*test_(\w+)\.py::Test(\w+)::\w+\[(asgi|wsgi)-?(.*)\]", name)
        assert found is not None, name
        adapter, kind, shell, driver = found.groups()
        kind = " ".join(re.findall(r"Async|MariaDB|MySQL|Pool|PostgreSQL|Psycopg2", kind))
        row = accounts.row
        numbers = " | ".join(str(row[column]) for column in COLUMNS)
        yield f"| {adapter} | {' '.join(filter(None, (driver, kind)))} | {shell} | {numbers} |"
