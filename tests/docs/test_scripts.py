"""The commands of the page on scripts, run as they stand there."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from retrymw.testing._server import free_port

PAGE = (Path(__file__).parents[2] / "docs/howto/scripts.md").read_text()
SECONDS = 60

SHOP = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"open"})
"""

MANAGE = """
import os, sys
import django
from django.conf import settings
from django.core.management import execute_from_command_line

host, port = os.environ["DATABASE_HOST"].split(":")
settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes"],
    DATABASES={"default": {"ENGINE": "django.db.backends.mysql", "HOST": host, "PORT": port,
        "NAME": "app", "USER": "app", "PASSWORD": "app"}},
)
execute_from_command_line(sys.argv)
"""


@pytest.fixture
def environment(mariadb, tmp_path):
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "manage.py").write_text(MANAGE)
    programs = os.path.dirname(sys.executable)
    return os.environ | {
        "DATABASE_URL": mariadb.url.replace("mysql:", "mysql+pymysql:"),
        "DATABASE_HOST": f"{mariadb.host}:{mariadb.port}",
        "PATH": f"{programs}:{os.environ['PATH']}",
    }


def test_containers_start(mariadb, environment, tmp_path):
    """The database comes up after the container; then the server is there, and stops as told."""
    [command] = re.findall(r"^CMD (\[.*\])$", PAGE, re.MULTILINE)
    port = free_port()
    mariadb.kill()
    with subprocess.Popen(
        [*json.loads(command), "--port", str(port)],
        cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert "not there yet" in process.stderr.readline()
            mariadb.start()
            for line in process.stderr:
                if "Uvicorn running" in line:
                    break
            assert httpx.get(f"http://127.0.0.1:{port}/").text == "open"
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=SECONDS)
        finally:
            process.kill()


def test_migration(mariadb, environment, tmp_path):
    """It begins when the server lets it in."""
    [line] = re.findall(r"^\$ (retrymw wait .* manage\.py migrate)$", PAGE, re.MULTILINE)
    with mariadb.fill() as _, subprocess.Popen(
        shlex.split(line),
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert "full" in process.stderr.readline()
            mariadb.kill_connections()
            said, errors = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert "Applying contenttypes.0001_initial... OK" in said
    for table in ("django_content_type", "django_migrations"):
        mariadb.execute(f"DROP TABLE app.{table}")
