"""What the private servers have in common: a folder, a process tree, and a way in."""

from __future__ import annotations

import importlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from retrymw.testing._process import ProcessTree, account
from retrymw.testing._relay import listen

if TYPE_CHECKING:
    from typing_extensions import Self


def free_port(but: int | None = None) -> int:
    """Return a port of 127.0.0.1 that is free and below 32768, and not the one given."""
    while True:
        with listen() as listener:
            port = int(listener.getsockname()[1])
        if port != but:
            return port


class Server(ABC):
    """A private database server on 127.0.0.1, in a folder of its own under /tmp.

    A context manager: entering it is `start`, leaving it is `close`. Run by root, the server runs
    as another system user. The app's `user` has a `password` and owns `database`, but is no
    superuser; at most `max_connections` of its connections are let in.

    - `settings`: more settings of the server, under the server's own names.

    The helpers `execute`, `kill_connections`, `connection_count`, `wait_ready` and `wait_for_sleep`
    have a way in of their own, which works when all connections are taken. They raise ImportError
    without a driver.
    """

    host: Final = "127.0.0.1"
    user: Final = "app"
    password: Final = "app"
    database: Final = "app"
    protocol: ClassVar[Literal["mysql", "postgresql"]]
    _user: ClassVar[str]  # of the system, when we are root
    _driver: ClassVar[tuple[str, str]]  # module, and what to install for it
    _end_signal: ClassVar[signal.Signals] = signal.SIGTERM
    _question: ClassVar[str] = "SELECT 1"  # for wait_ready
    _sleeping: ClassVar[str]  # for wait_for_sleep

    def __init__(self, max_connections: int, settings: Mapping[str, object] | None) -> None:
        self.max_connections = max_connections
        self.port = free_port()
        self._settings = dict(settings or {})
        self._folder: Path | None = None
        self._processes: ProcessTree | None = None
        self._account = account(self._user)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """The folder of the server, there from the first start until `close`."""
        if self._folder is None:
            raise RuntimeError(f"{type(self).__name__} has not been started")
        return self._folder

    @property
    def running(self) -> bool:
        """Whether the server's process lives, be it paused."""
        return self._processes is not None and self._processes.running

    @property
    def url(self) -> str:
        """The address of the app's database: scheme://user:password@host:port/database."""
        user = f"{self.user}:{self.password}"
        return f"{self.protocol}://{user}@{self.host}:{self.port}/{self.database}"

    def connect_args(self, **changes: Any) -> dict[str, Any]:
        """Return the keyword arguments of the driver's `connect`, with `changes`."""
        names = ("host", "port", "user", "password", "database")
        return {name: getattr(self, name) for name in names} | changes

    def start(self) -> None:
        """Start the server and wait until it is ready; nothing happens if it runs already.

        Raises FileNotFoundError if it is not installed; RuntimeError, with the end of its log, or
        TimeoutError if it does not come up, and then closes it.
        """
        if self.running:
            return
        self.stop()
        try:
            if self._folder is None:
                # /tmp: short enough for a socket's path, and open to the other account
                self._folder = Path(tempfile.mkdtemp(prefix="retrymw-", dir="/tmp"))
                self._give(self._folder)
                self._initialise()
            self._processes = ProcessTree(self._command(), self.folder, self._account)
            self.wait_ready()
        except BaseException:
            self.close()
            raise

    def stop(self, timeout: float = 10.0) -> None:
        """End the server in good order, or kill it after `timeout` seconds; keep the data."""
        if self._processes is not None:
            self._processes.stop(self._end_signal, timeout)
            self._processes = None

    def kill(self) -> None:
        """Kill all processes of the server at once (SIGKILL); keep the data."""
        if self._processes is not None:
            self._processes.kill()
            self._processes = None

    def restart(self) -> None:
        """Stop and start the server."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Halt all processes of the server (SIGSTOP): it still takes connections, and is mute."""
        if self._processes is None or not self.running:
            raise RuntimeError(f"{type(self).__name__} is not running")
        self._processes.pause()

    def resume(self) -> None:
        """Let a paused server go on; nothing happens if it is not paused."""
        if self._processes is not None:
            self._processes.resume()

    def close(self) -> None:
        """Stop the server and remove its folder."""
        self.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder = None

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until the server answers a query; TimeoutError after about `timeout` seconds.

        Raises RuntimeError, with the end of the server's log, if it is not running.
        """
        deadline = time.monotonic() + timeout
        while True:
            if not self.running:
                log = (self.folder / "log").read_text(errors="replace")
                raise RuntimeError(f"{type(self).__name__} is not running; its log: {log[-2000:]}")
            try:
                self.execute(self._question)
            except self._load_driver().OperationalError as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no answer from {self.url} in {timeout} s") from error
                time.sleep(0.01)
            else:
                return

    def wait_for_sleep(self, timeout: float = 10.0) -> None:
        """Wait until a statement sleeps in the server, `SELECT SLEEP(9)` or `pg_sleep(9)` say.

        Raises TimeoutError after about `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while not self.execute(self._sleeping):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no statement sleeps in {self.url} after {timeout} s")
            time.sleep(0.01)

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Run one statement as superuser in the app's database, commit, and return its rows."""
        with closing(self._connect(admin=True)) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []

    def connection_count(self) -> int:
        """Return how many clients are connected, without the helpers' own connections."""
        return len(self._clients())

    def kill_connections(self, most: int | None = None) -> None:
        """End the connections of all clients, or of `most` at random; wait until they are gone."""
        clients = self._clients()
        if most is not None:
            clients = set(random.sample(sorted(clients), min(most, len(clients))))
        if clients:
            self._end(clients)
            self._wait_without(clients)

    @contextmanager
    def fill(self) -> Iterator[int]:
        """Take all connections that the server still gives the app, and give them back at the end.

        Yields how many it took. Connections that others have stay theirs.
        """
        taken: set[int] = set()
        with ExitStack() as connections:
            patience = time.monotonic() + 0.1  # those being closed right now are waited for
            while True:
                try:
                    connection = connections.enter_context(closing(self._connect()))
                except self._load_driver().OperationalError as error:
                    if not self._is_full(error):
                        raise
                    if len(taken) >= self.max_connections or time.monotonic() > patience:
                        break
                    time.sleep(0.01)
                else:
                    taken.add(self._id(connection))
                    patience = time.monotonic() + 0.1
            yield len(taken)
        if self._processes is not None and self._processes.responsive:
            self._wait_without(taken)

    def _wait_without(self, clients: set[int]) -> None:
        """Wait until none of these clients is connected."""
        deadline = time.monotonic() + 10
        while clients & self._clients():
            if time.monotonic() > deadline:
                raise TimeoutError(f"connections to {self.url} have not ended in 10 s")
            time.sleep(0.01)

    def _run(self, *command: str | Path, stdin: str = "") -> None:
        """Run a command that prepares the folder."""
        with subprocess.Popen(
            command, cwd=self.folder, text=True, start_new_session=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **self._account,
        ) as process:  # fmt: skip
            try:
                output, _ = process.communicate(stdin, timeout=60)
            except BaseException:
                # With its children, which would go on to write into a folder that is being removed.
                os.killpg(process.pid, signal.SIGKILL)
                raise
        if process.returncode:
            raise RuntimeError(f"{command[0]} failed: {output[-2000:]}")

    def _give(self, path: Path) -> None:
        """Make `path` belong to the account that the server runs under."""
        if self._account:
            os.chown(path, self._account["user"], self._account["group"], follow_symlinks=False)

    def _load_driver(self) -> Any:
        name, package = self._driver
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise ImportError(f"this needs {name}; try: pip install {package!r}") from error

    @abstractmethod
    def _initialise(self) -> None:
        """Prepare the folder."""

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the server's command line."""

    @abstractmethod
    def _connect(self, *, admin: bool = False) -> Any: ...

    @abstractmethod
    def _is_full(self, error: Exception) -> bool: ...

    @abstractmethod
    def _clients(self) -> set[int]: ...

    @abstractmethod
    def _id(self, connection: Any) -> int: ...

    @abstractmethod
    def _end(self, clients: Collection[int]) -> None: ...
