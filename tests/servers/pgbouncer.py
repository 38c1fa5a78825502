"""A private PgBouncer in front of a private PostgreSQL server."""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping
from typing import Any

from retrymw.testing import FaultProxy
from retrymw.testing._process import find_program
from retrymw.testing._server import Server
from retrymw.testing.servers import PostgreSQL


class PgBouncer(Server):
    """A private PgBouncer: see `Server`. `execute` talks to its console, not to a database.

    - `upstream`: the server that its database is on, behind a fault proxy, `proxy`.
    - `settings`: of the section [pgbouncer].

    Its database `misconfigured` is the same, but it has no password for it.
    """

    protocol = "postgresql"
    _user = "postgres"
    _driver = ("psycopg", "psycopg[binary]")
    _question = "SHOW VERSION"

    def __init__(
        self,
        upstream: PostgreSQL,
        *,
        max_connections: int = 50,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(max_connections, settings)
        self.upstream = upstream
        self.proxy = FaultProxy((upstream.host, upstream.port), "postgresql")

    def connect_args(self, **changes: Any) -> dict[str, Any]:
        arguments = super().connect_args()
        return {"dbname": arguments.pop("database")} | arguments | changes

    def start(self) -> None:
        if self._folder is None:
            self.proxy.start()
        super().start()

    def close(self) -> None:
        super().close()
        self.proxy.stop()

    def set(self, **settings: object) -> dict[str, object]:
        """Change settings while it runs, and return what they were."""
        before = {row[0]: row[1] for row in self.execute("SHOW CONFIG") if row[0] in settings}
        for name, value in settings.items():
            self.execute(f"SET {name} = '{value}'")
        return before

    def _initialise(self) -> None:
        proxy = f"host={self.proxy.host} port={self.proxy.port} dbname={self.database}"
        databases = {
            self.database: proxy,
            "misconfigured": f"{proxy} user={self.user} password=wrong",
        }
        settings = {
            "listen_addr": self.host,
            "listen_port": self.port,
            "unix_socket_dir": self.folder,
            "auth_type": "plain",
            "auth_file": self.folder / "users",
            "admin_users": "admin",
            "max_client_conn": self.max_connections,
            "pool_mode": "transaction",
            "server_tls_sslmode": "disable",
            "server_login_retry": 0,
            **self._settings,
        }
        self._write("users", f'"{self.user}" "{self.password}"\n"admin" "admin"\n')
        lines = ["[databases]", *map(" = ".join, databases.items())]
        lines += ["[pgbouncer]", *(f"{name} = {value}" for name, value in settings.items())]
        self._write("settings", "\n".join(lines) + "\n")

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        self._give(self.folder / name)

    def _command(self) -> list[str]:
        program = find_program("pgbouncer", "pgbouncer", "/usr/sbin")
        return [str(program), f"{self.folder}/settings"]

    def _connect(self, *, admin: bool = False) -> Any:
        changes = {"user": "admin", "password": "admin", "dbname": "pgbouncer"}
        return self._load_driver().connect(
            **self.connect_args(**changes if admin else {}),
            autocommit=True,
            connect_timeout=5,
            sslmode="disable",
            gssencmode="disable",
        )

    def _is_full(self, error: Exception) -> bool:
        return "no more connections allowed" in str(error)

    def _clients(self) -> set[int]:
        with self._connect(admin=True) as connection, connection.cursor() as cursor:
            cursor.execute("SHOW CLIENTS")
            names = [column.name for column in cursor.description]
            rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        return {row["port"] for row in rows if row["user"] != "admin"}

    def _id(self, connection: Any) -> int:
        with socket.socket(fileno=connection.fileno()) as client:
            try:
                return int(client.getsockname()[1])
            finally:
                client.detach()

    def _end(self, clients: Collection[int]) -> None:
        self.execute(f"KILL {self.database}")
        self.execute(f"RESUME {self.database}")
