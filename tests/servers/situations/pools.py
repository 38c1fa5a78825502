"""Pools that have no connection to give."""

from __future__ import annotations

from tests.servers.situations.base import Situation, Stage, caught, situation
from tests.servers.stacks.base import Where

SITUATIONS: list[Situation] = []
SERVERS = ("mariadb", "postgresql")


@situation(
    "pool dry",
    *SERVERS,
    verdict=("too-many-connections", "connect"),
    into=SITUATIONS,
    needs="pool",
)
def pool_dry(stage: Stage) -> Exception:
    """Its only connection is in use."""
    pool = stage.pool()
    pool.acquire()
    return caught(pool.acquire)


@situation("pool closed", *SERVERS, verdict=None, into=SITUATIONS, needs="pool")
def pool_closed(stage: Stage) -> Exception:
    """A bug of the app."""
    pool = stage.pool()
    pool.close()
    return caught(pool.acquire)


@situation(
    "pool of a dead server",
    *SERVERS,
    verdict=("disconnection", "connect"),
    into=SITUATIONS,
    needs="pool",
)
def pool_of_a_dead_server(stage: Stage) -> Exception:
    """It has none, and can't get any."""
    with stage.proxy.refuse():
        return caught(_first, stage, stage.through_proxy(connect_timeout=1))


@situation("pool with a wrong password", *SERVERS, verdict=None, into=SITUATIONS, needs="pool")
def pool_with_a_wrong_password(stage: Stage) -> Exception:
    """It has none, and never will."""
    return caught(_first, stage, stage.where(password="wrong", connect_timeout=1))


def _first(stage: Stage, where: Where) -> object:
    return stage.pool(where).acquire()
