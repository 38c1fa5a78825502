"""Runs one of the apps on a socket, until it is interrupted."""

from __future__ import annotations

import socket
from typing import Literal

from example_app.database import Database

AppName = Literal["starlette", "fastapi", "flask"]


def serve(app: AppName, database: Database, listener: socket.socket, *, protected: bool) -> None:
    """Run the app on a listening socket: Flask in threads, the others on uvicorn."""
    if app == "flask":
        from werkzeug.serving import make_server

        from example_app import flask_app

        host, port = listener.getsockname()[:2]
        wsgi_app = flask_app.create_app(database, protected=protected)
        make_server(host, port, wsgi_app, threaded=True, fd=listener.fileno()).serve_forever()
    else:
        import uvicorn

        from example_app import fastapi_app, starlette_app

        create_app = (fastapi_app if app == "fastapi" else starlette_app).create_app
        config = uvicorn.Config(
            create_app(database, protected=protected), access_log=False, log_level="warning"
        )
        uvicorn.Server(config).run([listener])
