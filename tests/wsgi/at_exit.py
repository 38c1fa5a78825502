"""Runs in a process of its own: it ends while requests wait for a database that is dead.

Prints how they were answered. Arguments: ``pings`` names the database, ``gevent`` has its patches
made, with ``late`` the main thread ends before anybody waits.
"""

import sys

if "gevent" in sys.argv:
    from gevent import monkey

    monkey.patch_all()

import logging
import threading
import time
from wsgiref.util import setup_testing_defaults

import tenacity

from retrymw import DisconnectionError, RetryPolicy
from retrymw.wsgi import RetryMiddleware


class Dead:
    """A database that does not answer."""

    def rollback(self, attempt):
        pass

    release = rollback

    def ping(self):
        raise DisconnectionError("gone")


def app(environ, start_response):
    raise DisconnectionError("gone", phase="connect")


def call():
    if "late" in sys.argv:
        threading.main_thread().join(30)
    environ = {"SCRIPT_NAME": "", "PATH_INFO": "/", "QUERY_STRING": ""}
    setup_testing_defaults(environ)
    seen = []
    for _ in retrying(environ, lambda status, headers: seen.append((status, dict(headers)))):
        pass
    [(status, headers)] = seen
    sys.stdout.write(f"{status[:3]} {headers['Retry-Outcome']}\n")


logging.disable()
policy = RetryPolicy(wait=tenacity.wait_fixed(30), deadline=60, max_waiting=3)
retrying = RetryMiddleware(app, policy=policy, databases=[Dead()] if "pings" in sys.argv else [])
for _ in range(3):
    threading.Thread(target=call).start()
while "late" not in sys.argv and sum(room.waiting for room in retrying.waiting_rooms()) < 3:
    time.sleep(0.01)
