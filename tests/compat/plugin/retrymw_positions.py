"""Where the middleware goes in the frameworks' own test runs: each function is a position.

``RETRYMW_POSITION`` names one of them, ``RETRYMW_POLICY`` is the policy in JSON. This is loaded
in the frameworks' environments, beside their tests, and so knows nothing of ours.
"""

import functools
import importlib
import inspect
import json
import os
import sys
from importlib.util import find_spec


def install(count):
    """Put the middleware where the environment says, if it does.

    Args:
        count: called for each exchange.
    """
    position = os.environ.get("RETRYMW_POSITION")
    if position:
        from retrymw import RetryPolicy

        globals()[position](RetryPolicy(**json.loads(os.environ["RETRYMW_POLICY"])))
        _count(count)


def asgi_outside(policy):
    """Around whatever the test clients are given, and around every app that is called."""
    from starlette import applications, testclient

    from retrymw.asgi import RetryMiddleware

    wrap = functools.partial(RetryMiddleware, policy=policy)
    _give_wrapped(testclient._TestClientTransport, "__init__", wrap)
    for client in filter(find_spec, ("httpx", "httpx2")):
        _give_wrapped(importlib.import_module(client).ASGITransport, "__init__", wrap)
    app = applications.Starlette.__call__

    async def call(self, scope, receive, send):
        await wrap(functools.partial(app, self))(scope, receive, send)

    applications.Starlette.__call__ = call


def asgi_inside(policy):
    """Where ``app.add_middleware()`` puts it when it is called last."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware

    from retrymw.asgi import RetryMiddleware

    def inside(build):
        def changed(self):
            self.user_middleware.insert(0, Middleware(RetryMiddleware, policy=policy))
            try:
                return build(self)
            finally:
                del self.user_middleware[0]

        return changed

    Starlette.build_middleware_stack = inside(Starlette.build_middleware_stack)
    if find_spec("fastapi"):
        from fastapi import FastAPI

        FastAPI.build_middleware_stack = inside(FastAPI.build_middleware_stack)


def wsgi_outside(policy):
    """Around whatever the test client and the development server are given."""
    from werkzeug import serving, test

    from retrymw.wsgi import RetryMiddleware

    # With a find_endpoint it does not warn that it is no integration of Flask.
    wrap = functools.partial(RetryMiddleware, policy=policy, find_endpoint=lambda environ: None)
    _give_wrapped(test, "run_wsgi_app", wrap)
    _give_wrapped(serving.BaseWSGIServer, "__init__", wrap)


def flask_extension(policy):
    """On every Flask app, before its first request."""
    from flask import Flask

    from retrymw.integrations.flask import Retry

    app = Flask.__call__

    def call(self, environ, start_response):
        if "retrymw" not in self.extensions:
            Retry(self, policy=policy)
        return app(self, environ, start_response)

    Flask.__call__ = call


def _give_wrapped(owner, name, wrap):
    """Have ``owner.name`` called with its argument `app` wrapped."""
    function = getattr(owner, name)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def changed(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.arguments["app"] = wrap(bound.arguments["app"])
        return function(*bound.args, **bound.kwargs)

    setattr(owner, name, changed)


def _count(count):
    # An app of ours around theirs would keep the shells from what they do for plain ones.
    for shell in filter(None, map(sys.modules.get, ("retrymw.asgi", "retrymw.wsgi"))):

        def first(*args, run=shell.Run):
            count()
            return run(*args)

        shell.Run = first
