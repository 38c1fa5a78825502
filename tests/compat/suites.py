"""The frameworks' own test suites, where the middleware goes in them, and what fails by design."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True)
class Known:
    """A test that newly fails, and has to.

    Args:
        name: of the test.
        reason: why it has to fail.
        since: the first version of the framework that is known to have the test.
    """

    name: str
    reason: str
    since: str


@dataclass(frozen=True)
class Configuration:
    """How the middleware is put around the apps.

    Args:
        name: for people.
        position: a function of ``plugin/retrymw_positions.py``.
        exchanges: that there are at least, as a ratio to the tests that pass.
        policy: its fields that are not the default.
        known: the tests that newly fail by design.
        spoiled: whether every exchange is to fail.
    """

    name: str
    position: str
    exchanges: float = 0.0
    policy: Mapping[str, Any] = field(default_factory=dict)
    known: tuple[Known, ...] = ()
    spoiled: bool = False


@dataclass(frozen=True)
class Suite:
    """A framework's published test suite.

    Args:
        name: of the framework, as on the package index.
        requires: what its tests need beyond `group`, of the framework's extras too.
        group: the dependency group of the framework's project that its tests need.
        configurations: that it is run in.
        part: the files that touch what we change; `make test` runs these.
        sample: some of these, nearly all of which call an app.
        whole: all that there is to run.
        path: what its tests import from, in their own folder.
    """

    name: str
    requires: tuple[str, ...]
    group: str
    configurations: tuple[Configuration, ...]
    part: tuple[str, ...]
    sample: str
    whole: tuple[str, ...] = ("tests",)
    path: str = "."


WITHOUT: Final = Configuration("without", "")
_PYTEST: Final = ("pytest-reportlog", "pytest-timeout", "pytest-xdist")

_START_IS_HELD: Final = "expects the start before the first chunk; it is held until that chunk"
_FIRST_CHUNK: Final = tuple(
    Known(
        f"tests/test_testclient.py::test_streaming_response_is_available_before_first_chunk[{on}]",
        _START_IS_HELD,
        since="1.10",
    )
    for on in ("asyncio", "trio")
)
_EMPTY_CHUNKS: Final = tuple(
    Known(
        f"tests/test_testclient.py::test_streaming_response_skips_empty_and_head_bodies[{on}-GET-]",
        f"{_START_IS_HELD}, and an empty one does not count",
        since="1.10",
    )
    for on in ("asyncio", "trio")
)

SUITES: Final = (
    Suite(
        "starlette",
        ("starlette[full]", "anyio", *_PYTEST),
        group="dev",
        configurations=(
            Configuration("outside", "asgi_outside", 0.8, known=(*_FIRST_CHUNK, *_EMPTY_CHUNKS)),
            Configuration("inside", "asgi_inside", 0.2, known=_FIRST_CHUNK),
        ),
        part=(
            "tests/middleware/test_base.py",
            "tests/middleware/test_errors.py",
            "tests/middleware/test_gzip.py",
            "tests/middleware/test_session.py",
            "tests/test_background.py",
            "tests/test_exceptions.py",
            "tests/test_formparsers.py",
            "tests/test_requests.py",
            "tests/test_responses.py",
            "tests/test_staticfiles.py",
            "tests/test_testclient.py",
            "tests/test_websockets.py",
        ),
        sample="tests/middleware/test_session.py",
    ),
    Suite(
        "fastapi",
        ("fastapi[all]", "anyio", *_PYTEST),
        group="tests",
        configurations=(
            Configuration("outside", "asgi_outside", 0.7),
            Configuration("inside", "asgi_inside", 0.7),
        ),
        part=(
            "tests/test_custom_middleware_exception.py",
            "tests/test_dependency_after_yield_raise.py",
            "tests/test_dependency_after_yield_streaming.py",
            "tests/test_dependency_after_yield_websockets.py",
            "tests/test_dependency_contextmanager.py",
            "tests/test_dependency_contextvars.py",
            "tests/test_dependency_yield_scope.py",
            "tests/test_exception_handlers.py",
            "tests/test_response_code_no_body.py",
            "tests/test_sse.py",
            "tests/test_stream_cancellation.py",
            "tests/test_stream_status_code.py",
            "tests/test_upload_file_read_position.py",
        ),
        sample="tests/test_dependency_contextmanager.py",
        whole=("tests", "-n", "2", "--dist", "loadgroup"),
        path="docs_src",
    ),
    Suite(
        "werkzeug",
        _PYTEST,
        group="tests",
        configurations=(
            Configuration("outside", "wsgi_outside", 0.2),
            Configuration("outside, until return", "wsgi_outside", 0.2, {"hold": "until-return"}),
        ),
        part=(
            "tests/middleware",
            "tests/test_exceptions.py",
            "tests/test_formparser.py",
            "tests/test_send_file.py",
            "tests/test_test.py",
            "tests/test_wrappers.py",
            "tests/test_wsgi.py",
        ),
        sample="tests/middleware",
    ),
    Suite(
        "flask",
        # Its tests import what pytest 9.1 renamed.
        ("flask[async,dotenv]", "pytest<9.1", *_PYTEST),
        group="tests",
        configurations=(
            Configuration("extension", "flask_extension", 0.8),
            Configuration("outside", "wsgi_outside", 0.8),
            Configuration("outside, until return", "wsgi_outside", 0.8, {"hold": "until-return"}),
        ),
        part=(
            "tests/test_async.py",
            "tests/test_basic.py",
            "tests/test_helpers.py",
            "tests/test_reqctx.py",
            "tests/test_session_interface.py",
            "tests/test_signals.py",
            "tests/test_testing.py",
            "tests/test_user_error_handler.py",
            "tests/test_views.py",
        ),
        sample="tests/test_views.py",
    ),
)
