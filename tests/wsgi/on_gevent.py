"""Runs in a process of its own: the middleware under gevent's patches and gevent's server."""
# ruff: noqa: E402  # the patches come first

from gevent import monkey

monkey.patch_all()

import contextlib
import http.client
import json
import logging
import sys
import time
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import gevent
import tenacity
from gevent.event import Event
from gevent.pool import Group
from gevent.pywsgi import WSGIServer

from retrymw import DisconnectionError, RetryPolicy, current_attempt
from retrymw.wsgi import RetryMiddleware

LONG = 30.0
patched_sleep = time.sleep
changed, go_on = Event(), Event()
waiting = set()


def wait(seconds):
    """A wait that can be cut short."""
    waiting.add(gevent.getcurrent())
    changed.set()
    go_on.wait(seconds)
    waiting.remove(gevent.getcurrent())


def until_waiting(count):
    with gevent.Timeout(LONG):
        while len(waiting) < count:
            changed.wait()
            changed.clear()


def app(environ, start_response):
    if environ["PATH_INFO"] == "/down" and not current_attempt().is_replay:
        raise DisconnectionError("gone")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def middleware():
    policy = RetryPolicy(wait=tenacity.wait_fixed(LONG), deadline=2 * LONG)
    return validator(RetryMiddleware(validator(app), policy=policy))


def call(retrying):
    """Without a server: the status and the outcome."""
    seen = []
    environ = {"SCRIPT_NAME": "", "PATH_INFO": "/down", "QUERY_STRING": ""}
    setup_testing_defaults(environ)
    result = retrying(environ, lambda status, headers: seen.append((status, dict(headers))))
    with contextlib.closing(result):
        assert list(result)
    [(status, headers)] = seen
    return int(status[:3]), headers["Retry-Outcome"]


def over_sockets():
    server = WSGIServer(("127.0.0.1", 0), middleware(), log=None)
    server.start()

    def get(path):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        return response.status, body, response.headers["Retry-Attempts"]

    clients = Group()
    down = [clients.spawn(get, "/down") for _ in range(50)]
    until_waiting(50)
    result = {"served meanwhile": get("/static"), "waiting": len(waiting)}
    go_on.set()
    clients.join()
    go_on.clear()
    server.stop()
    return {**result, "afterwards": [reply.value for reply in down]}


def limits():
    retrying = middleware()
    clients = Group()
    down = [clients.spawn(call, retrying) for _ in range(1000)]
    until_waiting(1000)
    result = {"one more": call(retrying), "most waiting": len(waiting)}
    go_on.set()
    clients.join()
    go_on.clear()
    return {**result, "recovered": sum(reply.value == (200, "recovered") for reply in down)}


def timeout():
    timer = gevent.Timeout(0.01)
    try:
        with timer:
            call(middleware())
    except gevent.Timeout as passed:
        return passed is timer
    return False


logging.disable()
time.sleep = wait
results = {**over_sockets(), **limits()}
time.sleep = patched_sleep
sys.stdout.write(json.dumps({**results, "timeout passed": timeout()}))
