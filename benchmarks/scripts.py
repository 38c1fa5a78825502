"""Twenty scripts want into a database that 200 clients of mariadb-slap have filled.

``python -m benchmarks scripts`` runs them as they are, and with ``connecting``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import click

from benchmarks.slap import slap_command
from retrymw.testing.servers import MariaDB

__all__ = ["Result", "play", "scripts"]

CLIENTS = 200
SCRIPTS = 20
SECONDS = 90

SCRIPT = """
import json, sys, time
import pymysql
from retrymw.connect import connecting

patient, arguments = json.loads(sys.argv[1])
connect = connecting(pymysql.connect) if patient else pymysql.connect
print("ready", flush=True)
sys.stdin.readline()
started = time.monotonic()
with connect(**arguments) as connection, connection.cursor() as cursor:
    print(time.monotonic() - started)
    cursor.execute("INSERT INTO scripts VALUES (%s)", [sys.argv[2]])
    connection.commit()
"""


@dataclass
class Result:
    """What became of the scripts.

    Attributes:
        finished: how many have connected, written and ended well.
        waits: seconds until each of them was let in.
        refused: connections that came to nothing meanwhile, the clients' of slap included.
    """

    finished: int
    waits: list[float]
    refused: int


def play(*, patient: bool) -> Result:
    """Start all scripts while mariadb-slap holds all connections, and wait for their end."""
    with MariaDB(max_connections=CLIENTS + 1) as server:  # slap itself has one more
        server.execute("CREATE TABLE app.scripts (number INT)")
        arguments = json.dumps([patient, server.connect_args()])
        with ExitStack() as processes:
            scripts = [
                processes.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-c", SCRIPT, arguments, str(number)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                        text=True,
                    )
                )
                for number in range(SCRIPTS)
            ]
            for script in scripts:
                if script.stdout is None or script.stdout.readline() != "ready\n":
                    raise RuntimeError("a script did not start")
            processes.enter_context(_slap(server))
            waits = _let_go(scripts)
        [(stored,)] = server.execute("SELECT COUNT(DISTINCT number) FROM app.scripts")
        if stored != len(waits):
            raise RuntimeError(f"{len(waits)} scripts ended well, and {stored} have written")
        # Connection_errors_max_connections leaves out those that came one at a time.
        [(_, refused)] = server.execute("SHOW GLOBAL STATUS LIKE 'Aborted_connects'")
        return Result(len(waits), waits, int(refused))


def _let_go(scripts: list[subprocess.Popen[str]]) -> list[float]:
    """Let the scripts connect; the seconds that those waited which ended well."""
    for script in scripts:
        if script.stdin is not None:
            script.stdin.write("go\n")
            script.stdin.flush()
    waits = []
    for script in scripts:
        try:
            output, _ = script.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            script.kill()
            continue
        if script.returncode == 0:
            waits.append(float(output))
    return waits


@contextmanager
def _slap(server: MariaDB) -> Iterator[None]:
    """mariadb-slap has filled the server, and lets go for a moment after eight seconds."""
    command = slap_command(
        server,
        "--query=SELECT SLEEP(2)",
        f"--concurrency={CLIENTS}",
        f"--number-of-queries={CLIENTS * 4}",
        "--iterations=2",
    )
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as load:
        # It hangs when it has a client that was refused for a second.
        end = threading.Timer(30, load.kill)
        end.start()
        try:
            _wait_until_full(server)
            yield
        finally:
            end.cancel()
            load.kill()


def _wait_until_full(server: MariaDB) -> None:
    deadline = time.monotonic() + 60
    while server.connection_count() < server.max_connections:
        if time.monotonic() > deadline:
            raise TimeoutError("mariadb-slap has not filled the server in 60 s")
        time.sleep(0.05)


@click.command()
def scripts() -> None:
    """Run the scripts without retrymw, then with it."""
    for patient in (False, True):
        result = play(patient=patient)
        name = "with connecting" if patient else "as they are"
        waits = result.waits or [0.0]
        click.echo(
            f"{name}: {result.finished}/{SCRIPTS} finished; let in after "
            f"{statistics.median(waits):.2f} s (median), {max(waits):.2f} s at most; "
            f"{result.refused} connections came to nothing"
        )


if __name__ == "__main__":
    scripts()
