"""The end of a server while a request waits."""

from __future__ import annotations

from .control import SECONDS
from .servers import WebServer
from .way import NORMAL, Look, Way


class Shutdown:
    """What every server does when it is asked to stop."""

    server: WebServer

    def test_shutdown_in_a_wait(self, look_anew: Look) -> None:
        """G6: a server that lets its requests end lets those end that are to be replayed."""

        def observe(way: Way) -> str:
            asked = way.new("hello", fail=1) if way.replays else way.new("sleep", seconds=0.5)
            with way.connect() as client:
                client.request(asked.path)
                way.control.wait(asked.key, "wait")
                way.running.terminate()
                try:
                    response = client.response()
                except ConnectionError:
                    found = "the connection is cut"
                else:
                    way.check(response)
                    found = NORMAL
            assert way.running.ends(SECONDS)
            return found

        look_anew("shutdown", observe, "slow", grace=10)

    def test_shutdown_in_a_long_wait(self, look_anew: Look) -> None:
        """G6: a wait that is longer than the server's patience does not keep it from ending."""
        seconds = SECONDS if self.server.says("shutdown in a long wait") == NORMAL else 3

        def observe(way: Way) -> str:
            asked = way.new("hello", fail=1) if way.replays else way.new("sleep", seconds=3600)
            with way.connect() as client:
                client.request(asked.path)
                way.control.wait(asked.key, "wait")
                way.running.terminate()
                return NORMAL if way.running.ends(seconds) else "it does not end"

        look_anew("shutdown in a long wait", observe, "patient", grace=1)
