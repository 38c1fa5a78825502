"""Under uvloop a connection that is refused at once has no socket left to be looked at."""

import asyncio
from collections import Counter

import aiomysql
import asyncmy
import pytest
import uvloop

from retrymw.classify import classify


@pytest.mark.parametrize("driver", [asyncmy, aiomysql], ids=["asyncmy", "aiomysql"])
def test_full_server(mariadb, driver):
    """Whatever the driver makes of it, it is too many connections, in the connect."""
    arguments = mariadb.connect_args()
    if driver is aiomysql:
        arguments["db"] = arguments.pop("database")

    async def attempt():
        try:
            connection = await driver.connect(**arguments)
        except Exception as exc:  # noqa: BLE001  # what becomes of it is the test
            failure = classify(exc)
            return failure and (failure.kind, failure.phase)
        connection.close()
        return "let in"

    async def attempts():
        return await asyncio.gather(*(attempt() for _ in range(50)))

    loop = uvloop.new_event_loop()
    try:
        with mariadb.fill():
            seen = Counter(loop.run_until_complete(attempts()))
    finally:
        loop.close()
    assert seen[("too-many-connections", "connect")] > 0
    assert seen.keys() <= {("too-many-connections", "connect"), "let in"}


def test_runtime_error_of_an_app():
    """A RuntimeError that no driver raised over a new connection is none of ours."""
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError("Transport does not expose socket instance")
    assert classify(caught.value) is None
