"""Runs in a process of its own: the middleware under gevent's patches and gevent's server."""
# ruff: noqa: E402  # the patches come first

from gevent import monkey

monkey.patch_all()

import contextlib
import http.client
import json
import logging
import sys
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import gevent
import tenacity
from gevent.event import Event
from gevent.pool import Group
from gevent.pywsgi import WSGIServer

from retrymw import DisconnectionError, RetryPolicy
from retrymw.wsgi import RetryMiddleware

LONG = 30.0
healthy = Event()


def app(environ, start_response):
    if environ["PATH_INFO"] == "/down" and not healthy.is_set():
        raise DisconnectionError("gone")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def middleware():
    policy = RetryPolicy(wait=tenacity.wait_fixed(LONG), deadline=2 * LONG)
    return RetryMiddleware(validator(app), policy=policy)


def until_waiting(retrying, count):
    with gevent.Timeout(LONG):
        while sum(room.waiting for room in retrying.waiting_rooms()) < count:
            gevent.sleep(0.01)


def call(retrying):
    """Without a server: the status and the outcome."""
    seen = []
    environ = {"SCRIPT_NAME": "", "PATH_INFO": "/down", "QUERY_STRING": ""}
    setup_testing_defaults(environ)
    result = validator(retrying)(
        environ, lambda status, headers: seen.append((status, dict(headers)))
    )
    with contextlib.closing(result):
        assert list(result)
    [(status, headers)] = seen
    return int(status[:3]), headers.get("Retry-Outcome")


def over_sockets():
    retrying = middleware()
    server = WSGIServer(("127.0.0.1", 0), validator(retrying), log=None)
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
    until_waiting(retrying, 50)
    [room] = retrying.waiting_rooms()
    result = {"served meanwhile": get("/static"), "waiting": room.waiting}
    healthy.set()
    with gevent.Timeout(LONG / 2):  # so that nobody's own wait is over
        result["first success"] = get("/down")
        clients.join()
    healthy.clear()
    server.stop()
    return {**result, "afterwards": [reply.value for reply in down]}


def limits():
    retrying = middleware()
    clients = Group()
    down = [clients.spawn(call, retrying) for _ in range(1000)]
    until_waiting(retrying, 1000)
    [room] = retrying.waiting_rooms()
    result = {"one more": call(retrying), "most waiting": room.waiting}
    healthy.set()
    with gevent.Timeout(LONG / 2):
        result["first success"] = call(retrying)
        clients.join()
    healthy.clear()
    return {**result, "recovered": sum(reply.value == (200, "recovered") for reply in down)}


def timeout():
    retrying = middleware()
    timer = gevent.Timeout(0.01)
    try:
        with timer:
            call(retrying)
    except gevent.Timeout as passed:
        return passed is timer and [room.waiting for room in retrying.waiting_rooms()] == [0]
    return False


logging.disable()
results = {**over_sockets(), **limits(), "timeout passed": timeout()}
sys.stdout.write(json.dumps(results))
