"""Work in the background: bounded, and no obstacle to a signal."""

import asyncio
import subprocess
import sys
import threading

import pytest

from retrymw.commands._background import Executor, within
from retrymw.exceptions import DisconnectionError

BOUND = 30.0  # seconds


@pytest.fixture
def hold():
    """An event to wait for, which comes when the test ends."""
    event = threading.Event()
    yield event
    event.set()


def test_result_and_exception():
    """What the work returns is returned, what it raises is raised: the same object."""
    assert within(BOUND, lambda: 7) == 7
    error = ValueError("its own")

    def fail():
        raise error

    with pytest.raises(ValueError, match="its own") as caught:
        within(BOUND, fail)
    assert caught.value is error


def test_time_is_up(hold):
    """Work that takes too long is left to itself, and says that there was no connection."""
    with pytest.raises(DisconnectionError, match=r"no answer within 0\.2 s") as caught:
        within(0.2, lambda: hold.wait(BOUND))
    assert caught.value.phase == "connect"


SIGNALLED = """
import signal, threading, time
from retrymw.commands._background import within

class StoppedError(Exception):
    pass

def stop(*_):
    raise StoppedError

def work():
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    time.sleep(60)

signal.signal(signal.SIGUSR1, stop)
try:
    within(60, work)
except StoppedError:
    print("stopped")
"""


def test_signal_that_another_thread_gets():
    """G6: a signal ends it, though the kernel gave it to the thread that works."""
    line = [sys.executable, "-c", SIGNALLED]
    done = subprocess.run(line, capture_output=True, text=True, timeout=BOUND, check=False)
    assert done.stdout == "stopped\n", done.stderr


def test_executor_is_no_reason_to_stay(hold):
    """The threads in which an event loop looks names up end with the process."""

    async def look_up():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(Executor())
        return await loop.run_in_executor(None, lambda: threading.current_thread().daemon)

    assert asyncio.run(look_up())
