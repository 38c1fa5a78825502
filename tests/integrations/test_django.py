"""Django: what it squashes, the marks of its views, and its middleware, with a database or not."""

from __future__ import annotations

import functools
import itertools
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import anyio
import django
import httpx
import pytest
import tenacity
from asgiref.sync import async_to_sync, iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.conf import settings
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_started
from django.db import DatabaseError, connections, transaction
from django.db.utils import ConnectionHandler
from django.http import Http404, HttpResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.test import Client, override_settings
from django.urls import path, re_path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

import retrymw.asgi
import retrymw.wsgi
from retrymw import (
    DisconnectionError,
    RetryPolicy,
    current_attempt,
    idempotent,
    never_replay,
    rollback_safe,
)
from retrymw.adapters.django import Database
from retrymw.integrations.django import Retry
from retrymw.testing import FaultProxy
from retrymw.testing.servers import MariaDB, PostgreSQL

if not settings.configured:  # other tests have Django as well
    settings.configure(USE_TZ=True)
    django.setup()
settings.SECRET_KEY = "not one"  # override_settings() can't set it where there was none

Server = MariaDB | PostgreSQL

POLICY = RetryPolicy(wait=tenacity.wait_none())
MODES = {
    "production": {},
    "debug": {"DEBUG": True},
    "propagating": {"DEBUG_PROPAGATE_EXCEPTIONS": True},
}
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {
            "loaders": [("django.template.loaders.locmem.Loader", {"page": "{{ query }}hello"})]
        },
    }
]
CSRF = "django.middleware.csrf.CsrfViewMiddleware"
SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
USERS = "django.contrib.auth.middleware.AuthenticationMiddleware"
ENGINES = {"mysql": "django.db.backends.mysql", "postgresql": "django.db.backends.postgresql"}
FINE = (200, None, 1)
RECOVERED = (200, "recovered", 2)
REFUSED = (503, "not-replayable", 1)

numbers = itertools.count()
published = sys.modules["retrymw_test_middleware"] = ModuleType("retrymw_test_middleware")


class AppError(Exception):
    """The app's own wrapper of a driver's exception."""


class Flaky:
    """Call it where the database is used: it fails the first ``failures`` times, and counts."""

    def __init__(self, failures: int = 1) -> None:
        self.failures = failures
        self.calls = 0

    def __call__(self, *_: Any) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise DisconnectionError("the server has gone away")
        return ""


class Handler(ASGIHandler):
    """Before 6.1, what escapes Django's handler leaves the body's file to be closed by nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[Any] = []

    async def read_body(self, receive: Any) -> Any:
        self.bodies.append(await super().read_body(receive))
        return self.bodies[-1]


class Site:
    """A Django site behind ``Retry``, under one of its two handlers."""

    def __init__(self, shell: str, flaky: Flaky) -> None:
        self.shell = shell
        self.flaky = flaky
        self.settings: dict[str, Any] = {}
        self.options: dict[str, Any] = {"policy": POLICY}
        self.middleware: list[Any] = []

        def view(request: Any) -> HttpResponse:
            flaky()
            return HttpResponse("hello")

        self.view = view  # what most tests have at ``/``; a function, so that it can be marked

    def send(self, view: Any, method: str = "GET", url: str = "/", **request: Any) -> Any:
        """Send a request, to the view at ``/`` or to the URLconf that is given instead."""
        urls = view if isinstance(view, (tuple, URLs)) else (path("", view),)
        own = {
            "ROOT_URLCONF": urls,
            "ALLOWED_HOSTS": ["*"],
            "TEMPLATES": TEMPLATES,
        }
        with ExitStack() as stack:
            stack.enter_context(override_settings(**own | self.settings))
            if self.middleware:
                names = [_published(one) for one in self.middleware]
                stack.enter_context(override_settings(MIDDLEWARE=names))
            if self.shell == "wsgi":
                app = Retry(WSGIHandler(), **self.options)
                with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://x") as http:
                    return http.request(method, url, **request)
            handler = Handler()
            app = Retry(handler, **self.options)
            try:
                return anyio.run(functools.partial(send_asgi, app, method, url, **request))
            finally:
                for body in handler.bodies:
                    body.close()

    def outcome(self, view: Any, method: str = "GET", **request: Any) -> tuple[Any, ...]:
        """The status, what retrymw says, and how often the database was used."""
        response = self.send(view, method, **request)
        return response.status_code, response.headers.get("retry-outcome"), self.flaky.calls


async def send_asgi(app: Any, method: str, url: str, **request: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        return await client.request(method, url, **request)


def _published(middleware: Any) -> str:
    """Its name for ``MIDDLEWARE``."""
    if isinstance(middleware, str):
        return middleware
    name = f"middleware_{next(numbers)}"
    setattr(published, name, middleware)
    return f"{published.__name__}.{name}"


class URLs:
    """A URLconf with error handlers."""

    def __init__(self, *urlpatterns: Any, **handlers: Any) -> None:
        self.urlpatterns = urlpatterns
        vars(self).update(handlers)


@pytest.fixture
def flaky() -> Flaky:
    return Flaky()


@pytest.fixture(params=["wsgi", "asgi"])
def site(request: pytest.FixtureRequest, flaky: Flaky) -> Site:
    """The site under test, under both handlers."""
    return Site(request.param, flaky)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest, site: Site) -> str:
    site.settings = MODES[request.param]
    return str(request.param)


# Installing


def test_which_middleware() -> None:
    """It is the middleware of the handler's own protocol."""
    with override_settings(ROOT_URLCONF=()):
        assert isinstance(Retry(WSGIHandler()), retrymw.wsgi.RetryMiddleware)
        assert isinstance(Retry(ASGIHandler()), retrymw.asgi.RetryMiddleware)


def test_twice() -> None:
    """G2: wrapping an app twice would be a mistake, and is an error."""
    app = WSGIHandler()
    Retry(app)
    with pytest.raises(RuntimeError, match="wrapped already"):
        Retry(app)


@pytest.mark.parametrize("make", [object, lambda: Retry(WSGIHandler()), lambda: WSGIHandler])
def test_not_django(make: Any) -> None:
    """Anything but a handler of Django's is refused when the app starts."""
    with pytest.raises(TypeError, match=r"allowed: what Django's get_wsgi_application\(\) or"):
        Retry(make())


def test_handler_of_static_files() -> None:
    """What serves static files has the app in it, and belongs outside."""
    with override_settings(STATIC_URL="/static/"):
        with pytest.raises(TypeError, match=r"app is <django\.contrib\.staticfiles"):
            Retry(StaticFilesHandler(WSGIHandler()))
        StaticFilesHandler(Retry(WSGIHandler()))


def test_wrong_argument() -> None:
    """What the middleware refuses is refused, and the handler is left as it was."""
    handler = WSGIHandler()
    with pytest.raises(TypeError, match="policy is 5"):
        Retry(handler, policy=5)  # type: ignore[call-overload]
    Retry(handler)


def test_unknown_django() -> None:
    """A Django that has no such method is refused by its name."""

    class Handler(WSGIHandler):
        resolve_request = None

    with pytest.raises(RuntimeError, match=r"has no resolve_request\(\)"):
        Retry(Handler())


def test_outside_of_attempts(site: Site) -> None:
    """G5: the handler works by itself as well, and so does Django's test client."""
    handler = WSGIHandler()
    Retry(handler)
    with override_settings(ROOT_URLCONF=(path("", site.view),), ALLOWED_HOSTS=["*"]):
        with httpx.Client(transport=httpx.WSGITransport(handler), base_url="http://x") as client:
            assert [client.get("/").status_code for _ in range(2)] == [500, 200]
        site.flaky.calls = 0
        assert Client(raise_request_exception=False).get("/").status_code == 500


def test_lifespan() -> None:
    """G5: what is not HTTP passes: Django refuses it as ever."""

    async def main() -> None:
        with pytest.raises(ValueError, match="only handle ASGI/HTTP"):
            await Retry(ASGIHandler())({"type": "lifespan"}, None, None)

    anyio.run(main)


# Squashed exceptions


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_unhandled(site: Site, mode: str, method: str) -> None:
    """G3: a failure in a view is replayed, whether Django renders it or raises it."""
    assert site.outcome(site.view, method) == RECOVERED


def test_post(site: Site, mode: str) -> None:
    """G3: an unmarked POST is not replayed; it gets the 503 in every mode, never a bare 500."""
    response = site.send(site.view, "POST")
    assert (response.status_code, site.flaky.calls) == (503, 1)
    assert response.headers["retry-outcome"] == "not-replayable"
    assert "retry-after" in response.headers


def test_exhausted(site: Site, mode: str) -> None:
    """G2: six attempts, then the 503."""
    site.flaky.failures = 100
    assert site.outcome(site.view) == (503, "exhausted", 6)


def test_async_view(site: Site, mode: str) -> None:
    """An async view has its attempt, is replayed, and keeps its mark."""

    @idempotent
    async def view(request: Any) -> HttpResponse:
        await sync_to_async(lambda: None)()
        assert current_attempt().number == site.flaky.calls + 1
        return site.view(request)

    assert site.outcome(view, "POST") == RECOVERED


def test_wrapped_by_the_app(site: Site, mode: str) -> None:
    """G7: a failure behind the app's own exception is found."""

    def view(request: Any) -> HttpResponse:
        try:
            return site.view(request)
        except DisconnectionError as exc:
            raise AppError("no luck") from exc

    assert site.outcome(view) == RECOVERED


def test_in_a_template(site: Site, mode: str) -> None:
    """A failure while a TemplateResponse is rendered is replayed."""

    @idempotent
    def view(request: Any) -> TemplateResponse:
        return TemplateResponse(request, "page", {"query": site.flaky})

    assert site.outcome(view, "POST") == RECOVERED


def test_response_of_the_views_own(site: Site) -> None:
    """A view that makes a 500 of what it dooms is replayed by its mark; below 500 it is sent."""

    @idempotent
    def view(request: Any, status: int) -> HttpResponse:
        try:
            return site.view(request)
        except DisconnectionError as exc:
            current_attempt().doom(exc)
            return HttpResponse("sorry", status=status)

    assert site.outcome(functools.partial(view, status=500), "POST") == RECOVERED
    site.flaky.calls = 0
    assert site.outcome(functools.partial(view, status=409), "POST") == (409, None, 1)


@pytest.mark.parametrize("cause", [True, False])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Http404, 404),
        (PermissionDenied, 403),
        (BadRequest, 400),
        (SuspiciousOperation, 400),
    ],
)
def test_exceptions_below_500(
    site: Site, mode: str, error: type[Exception], status: int, cause: bool
) -> None:
    """G5: what Django answers below 500 is sent, even where the database was the cause."""

    def view(request: Any) -> HttpResponse:
        try:
            return site.view(request)
        except DisconnectionError as exc:
            raise error from exc if cause else None

    assert site.outcome(view) == (status, None, 1)


def test_errors_of_the_app(site: Site) -> None:
    """G5: what is not ours Django renders as ever."""
    calls: list[int] = []

    def view(request: Any) -> HttpResponse:
        calls.append(1)
        raise ZeroDivisionError

    response = site.send(view)
    assert (response.status_code, len(calls)) == (500, 1)
    assert "Server Error (500)" in response.text
    assert "retry-attempts" not in response.headers


def test_errors_of_the_app_pass(site: Site) -> None:
    """G5: and raises as ever, the same object, where it is told to."""
    error = ZeroDivisionError()

    def view(request: Any) -> HttpResponse:
        raise error

    site.settings = MODES["propagating"]
    with pytest.raises(ZeroDivisionError) as raised:
        site.send(view)
    assert raised.value is error


def test_signal_without_an_exception(site: Site) -> None:
    """An app that sends Django's signal by itself does no harm."""

    def view(request: Any) -> HttpResponse:
        django.core.signals.got_request_exception.send(sender=None, request=request)
        return HttpResponse("hello")

    assert site.outcome(view) == (200, None, 0)


# Error handlers


@pytest.mark.parametrize("status", [500, 503, 200, 404])
def test_handler500(site: Site, status: int) -> None:
    """A page for errors does not keep a request from being replayed, unless it is below 500."""
    urls = URLs(
        path("", site.view), handler500=lambda request: HttpResponse("sorry", status=status)
    )
    expected = RECOVERED if status >= 500 else (status, None, 1)
    assert site.outcome(urls) == expected


def test_failure_in_handler500(site: Site) -> None:
    """A page for errors that fails as well escapes Django, and is replayed."""
    site.flaky.failures = 2

    def broken(request: Any) -> HttpResponse:
        site.flaky()
        return HttpResponse(status=500)

    assert site.outcome(URLs(path("", site.view), handler500=broken)) == (200, "recovered", 3)


def test_failure_in_handler404(site: Site) -> None:
    """So is a failure in the page for what is missing."""

    def missing(request: Any, exception: Any) -> HttpResponse:
        site.flaky()
        return HttpResponse(status=404)

    assert site.outcome(URLs(handler404=missing)) == (404, "recovered", 2)


@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.parametrize("status", [500, 503, 200, 404])
def test_process_exception(site: Site, mode: str, status: int, is_last: bool) -> None:
    """A middleware that answers for an exception is such a page, wherever in the list it is."""

    class Sorry(Plain):
        def process_exception(self, request: Any, exception: Exception) -> HttpResponse:
            return HttpResponse("sorry", status=status)

    site.middleware = [Plain, Sorry] if is_last else [Sorry, Plain]
    expected = RECOVERED if status >= 500 else (status, None, 1)
    assert site.outcome(site.view) == expected


# Middleware


class Plain:
    """A middleware that does nothing, in both modes."""

    sync_capable = async_capable = True

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: Any) -> Any:
        if iscoroutinefunction(self):
            return self.later(request)
        self.before(request)
        return self.after(request, self.get_response(request))

    async def later(self, request: Any) -> Any:
        self.before(request)
        return self.after(request, await self.get_response(request))

    def before(self, request: Any) -> None: ...

    def after(self, request: Any, response: Any) -> Any:
        return response


def failing(where: str, flaky: Flaky) -> type[Plain]:
    """A middleware that uses the database."""

    class Failing(Plain):
        def before(self, request: Any) -> None:
            if where == "before":
                flaky()

        def after(self, request: Any, response: Any) -> Any:
            if where == "after":
                flaky()
            return response

        def process_view(self, *_: Any) -> None:
            if where == "process_view":
                flaky()

        def process_template_response(self, request: Any, response: Any) -> Any:
            if where == "process_template_response":
                flaky()
            return response

    return Failing


WHERE = ["before", "after", "process_view", "process_template_response"]


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_middleware(
    site: Site, mode: str, where: str, method: str, is_last: bool, is_async: bool
) -> None:
    """G3: a failure in a middleware is replayed by the table, and by the mark once it is routed."""
    middleware = failing(where, site.flaky)
    middleware.async_capable = is_async

    @idempotent
    def view(request: Any) -> TemplateResponse:
        return TemplateResponse(request, "page")

    site.middleware = [Plain, middleware] if is_last else [middleware, Plain]
    expected = REFUSED if (method, where) == ("POST", "before") else RECOVERED
    assert site.outcome(view, method) == expected


def test_mark_of_an_earlier_attempt(site: Site) -> None:
    """What fails before it is routed in a replay is still of the endpoint of attempt 1."""

    class FailsInTheSecond(Plain):
        def before(self, request: Any) -> None:
            if current_attempt().number == 2:
                raise DisconnectionError("gone")

    site.middleware = [FailsInTheSecond]
    response = site.send(idempotent(site.view), "POST")
    assert (response.status_code, response.headers["retry-attempts"]) == (200, "3")


def test_fails_when_the_request_starts(site: Site) -> None:
    """What a receiver of Django's own signals raises is replayed."""
    failures = [DisconnectionError("gone")]

    def receive(**_: Any) -> None:
        if failures:
            raise failures.pop()

    request_started.connect(receive)
    try:
        site.flaky.failures = 0
        assert site.outcome(site.view) == (200, "recovered", 1)
    finally:
        request_started.disconnect(receive)


# Marks


class Uses(View):
    """Uses the database in an unmarked method."""

    def post(self, request: Any) -> HttpResponse:
        return plain(request)


class Methods(View):
    @idempotent
    def post(self, request: Any) -> HttpResponse:
        return plain(request)


class Child(Methods):
    """Inherits the method and its mark."""


class AsyncMethods(View):
    @idempotent
    async def post(self, request: Any) -> HttpResponse:
        return plain(request)


class Decorated(View):
    @method_decorator([csrf_exempt, idempotent])
    def post(self, request: Any) -> HttpResponse:
        return plain(request)


class DecoratedAbove(View):
    @method_decorator(never_cache)
    @idempotent
    def post(self, request: Any) -> HttpResponse:
        return plain(request)


class Instance:
    @idempotent
    def __call__(self, request: Any) -> HttpResponse:
        return plain(request)


@idempotent
class MarkedClass(Uses):
    """Marked as a whole."""


@method_decorator(idempotent, name="post")
class DecoratedByName(Uses):
    """Marked by the name of the method."""


@method_decorator(idempotent, name="dispatch")
class DecoratedDispatch(Uses):
    """Marked in all methods."""


def plain(request: Any, **_: Any) -> HttpResponse:
    """Uses the database of the test that runs."""
    current[-1]()
    return HttpResponse("hello")


def marked() -> Any:
    """A marked view of its own."""

    @idempotent
    @functools.wraps(plain)
    def view(request: Any, **_: Any) -> HttpResponse:
        return plain(request)

    return view


current: list[Flaky] = []


@pytest.fixture
def known(flaky: Flaky) -> Iterator[None]:
    """``plain`` knows the test's database."""
    current.append(flaky)
    yield
    current.pop()


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    "make",
    [
        marked,
        lambda: csrf_exempt(marked()),
        lambda: idempotent(csrf_exempt(plain)),
        lambda: transaction.non_atomic_requests(marked()),
        lambda: never_cache(require_POST(csrf_exempt(marked()))),
        lambda: functools.partial(marked(), more=1),
        lambda: idempotent(Methods.as_view()),
        Instance,
        Methods.as_view,
        Child.as_view,
        MarkedClass.as_view,
        Decorated.as_view,
        DecoratedByName.as_view,
        DecoratedDispatch.as_view,
        DecoratedAbove.as_view,
        AsyncMethods.as_view,
        lambda: csrf_exempt(Methods.as_view()),
        lambda: never_cache(MarkedClass.as_view()),
    ],
)
def test_marks(site: Site, make: Callable[[], Any]) -> None:
    """G3: a mark is found on functions and classes, and behind the decorators of Django."""
    assert site.outcome(make(), "POST") == RECOVERED


@pytest.mark.parametrize("decorate", [csrf_exempt, never_cache, lambda view: view])
def test_no_mark(site: Site, decorate: Any) -> None:
    """G3: what Django's decorators say is no mark."""
    assert site.outcome(decorate(site.view), "POST") == REFUSED


def test_never_replay(site: Site) -> None:
    """G3: @never_replay is obeyed where the method would be replayed."""
    assert site.outcome(never_replay(site.view)) == REFUSED


def test_mark_with_changes(site: Site) -> None:
    """What a mark changes in the policy counts."""
    site.flaky.failures = 100
    view = idempotent(max_replays=1)(site.view)
    assert site.outcome(view, "POST") == (503, "exhausted", 2)


def test_is_last(site: Site) -> None:
    """A view knows by its mark whether a replay may follow."""
    seen: list[bool] = []

    def view(request: Any) -> HttpResponse:
        seen.append(current_attempt().is_last)
        return HttpResponse("hello")

    site.send(view, "POST")
    site.send(idempotent(view), "POST")
    assert seen == [True, False]


def test_urlconf_of_the_request(site: Site) -> None:
    """The view is the one that was routed to, with a URLconf that a middleware has chosen too."""
    other = (re_path("", idempotent(site.view)),)

    class Chooses(Plain):
        def before(self, request: Any) -> None:
            request.urlconf = other

    site.middleware = [Chooses]
    root = (path("", never_replay(lambda request: HttpResponse("not this"))),)
    assert site.outcome(root, "POST") == RECOVERED


def test_request_made_by_a_view(site: Site) -> None:
    """G2: a request that a view makes of its own site is part of the attempt, its mark is not."""

    @never_replay
    def inner(request: Any) -> HttpResponse:
        return site.view(request)

    @idempotent
    def outer(request: Any) -> HttpResponse:
        if site.shell == "asgi":
            response = async_to_sync(functools.partial(send_asgi, inside[-1], "GET", "/inner"))()
        else:
            with httpx.Client(
                transport=httpx.WSGITransport(inside[-1]), base_url="http://x"
            ) as http:
                response = http.get("/inner")
        return HttpResponse(response.text, status=response.status_code)

    inside: list[Any] = []
    inside.append(Retry(WSGIHandler() if site.shell == "wsgi" else ASGIHandler(), policy=POLICY))
    urls = (path("", outer), path("inner", inner))
    assert site.outcome(urls, "POST") == RECOVERED


# What a view sees


@pytest.mark.parametrize("handler", ["Memory", "Temporary"])
@pytest.mark.parametrize("kind", ["form", "json", "body", "stream", "files"])
def test_request_body(site: Site, kind: str, handler: str) -> None:
    """G5: the body can be read in each attempt, however Django reads it."""
    site.settings = {
        "FILE_UPLOAD_HANDLERS": [f"django.core.files.uploadhandler.{handler}FileUploadHandler"]
    }
    seen: list[Any] = []

    def view(request: Any) -> HttpResponse:
        if kind == "form":
            seen.append(request.POST.dict())
        elif kind == "json":
            seen.append(json.loads(request.body))
        elif kind == "body":
            seen.append(request.body)
        elif kind == "stream":
            seen.append(request.read(2) + request.read())
        else:
            seen.append(request.FILES["f"].read())
        return site.view(request)

    arguments: dict[str, Any] = {
        "form": {"data": {"a": "1"}},
        "json": {"json": {"a": 1}},
        "body": {"content": b"hello"},
        "stream": {"content": b"hello"},
        "files": {"files": {"f": ("f.txt", b"hello")}},
    }[kind]
    assert site.outcome(idempotent(view), "POST", **arguments) == RECOVERED
    assert seen in ([{"a": "1"}] * 2, [{"a": 1}] * 2, [b"hello"] * 2)


def test_request_is_new(site: Site) -> None:
    """G1: what attempt 1 left in the request's META and scope is gone in attempt 2."""
    seen: list[bool] = []

    class Leaves(Plain):
        def before(self, request: Any) -> None:
            seen.append("LEFT" in request.META or "left" in getattr(request, "scope", ()))
            request.META["LEFT"] = True
            if site.shell == "asgi":
                request.scope["left"] = True

    site.middleware = [Leaves]
    assert site.outcome(site.view) == RECOVERED
    assert seen == [False, False]


def test_csrf(site: Site) -> None:
    """G5: CSRF protection works in each attempt, and its 403 is sent as it is."""
    site.middleware = [CSRF]
    view = idempotent(site.view)
    response = site.send(view, "POST")
    assert (response.status_code, site.flaky.calls) == (403, 0)
    token = "a" * 32
    headers = {"Cookie": f"csrftoken={token}", "X-CSRFToken": token}
    assert site.outcome(view, "POST", headers=headers) == RECOVERED


def test_callbacks(site: Site) -> None:
    """on_success is called once, for the attempt that was sent, on_rollback for the other."""
    calls: list[str] = []

    def view(request: Any) -> HttpResponse:
        attempt = current_attempt()
        attempt.on_success(lambda: calls.append(f"success {attempt.number}"))
        attempt.on_rollback(lambda: calls.append(f"rollback {attempt.number}"))
        return site.view(request)

    assert site.outcome(view) == RECOVERED
    assert calls == ["rollback 1", "success 2"]


# Streaming


def streamed(site: Site, start: list[str], end: list[str]) -> Any:
    """A view that streams, with a use of the database between the start and the end."""

    def chunks() -> Iterator[str]:
        yield from start
        site.flaky()
        yield from end

    async def async_chunks() -> AsyncIterator[str]:
        for chunk in chunks():
            yield chunk

    make = chunks if site.shell == "wsgi" else async_chunks
    return lambda request: StreamingHttpResponse(make())


def test_stream_whose_first_chunk_fails(site: Site, mode: str) -> None:
    """G1: a stream whose first chunk fails is replayed."""
    assert site.send(streamed(site, [], ["hel", "lo"])).text == "hello"
    assert site.flaky.calls == 2


def test_stream_that_breaks(site: Site, mode: str) -> None:
    """G2: a stream that fails later can't be replayed: the exception passes."""
    with pytest.raises(DisconnectionError):
        site.send(streamed(site, ["hel"], ["lo"]))
    assert site.flaky.calls == 1


# With a database


class Store:
    """A table for orders, behind the fault proxy, and a site that keeps it in one of its
    ``DATABASES``."""

    def __init__(self, site: Site, server: Server, proxy: FaultProxy, watched: bool) -> None:
        self.site, self.server, self.proxy, self.watched = site, server, proxy, watched
        self.alias = ""

    def configure(self, **changes: Any) -> None:
        """What is in ``DATABASES``."""
        server, proxy = self.server, self.proxy
        self.close()
        self.alias = f"orders_{next(numbers)}"
        database = {
            "ENGINE": ENGINES[server.protocol],
            "NAME": server.database,
            "USER": server.user,
            "PASSWORD": server.password,
            "HOST": proxy.host,
            "PORT": str(proxy.port),
            "OPTIONS": {"connect_timeout": 5},
            **changes,
        }
        handler = ConnectionHandler({"default": {}, self.alias: database})
        connections.settings[self.alias] = handler.settings[self.alias]
        self.site.settings = {"DATABASE_ROUTERS": [self]}
        if self.watched:
            self.site.options["databases"] = [Database(self.alias)]

    def close(self) -> None:
        if self.alias:
            connections[self.alias].close()
            del connections[self.alias], connections.settings[self.alias]

    def db_for_read(self, model: Any, **_: Any) -> str:
        """For Django: sessions and users are here as well."""
        return self.alias

    db_for_write = db_for_read

    def execute(self, sql: str) -> None:
        with connections[self.alias].cursor() as cursor:
            cursor.execute(sql)

    def add(self, name: str) -> None:
        self.execute(f"INSERT INTO orders VALUES ('{name}')")

    def cut(self, at: Any = 1) -> None:
        """Arm a fault in the first attempt."""
        if current_attempt().number == 1:
            self.proxy.cut("reset", at=at)

    def orders(self) -> list[str]:
        """What is stored, as the server itself sees it."""
        return [row[0] for row in self.server.execute("SELECT name FROM app.orders ORDER BY name")]

    def outcome(self, view: Any, method: str = "POST", **request: Any) -> tuple[int, Any]:
        response = self.site.send(view, method, **request)
        return response.status_code, response.headers.get("retry-outcome")


@pytest.fixture(params=["mariadb", "postgresql"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each of both servers, with a table."""
    server: Server = request.getfixturevalue(request.param)
    if isinstance(server, PostgreSQL):
        server.execute("CREATE SCHEMA app AUTHORIZATION app")
    server.execute("CREATE TABLE app.orders (name VARCHAR(50))")
    if isinstance(server, PostgreSQL):
        server.execute("ALTER TABLE app.orders OWNER TO app")
    yield server
    server.start()
    server.kill_connections()
    for table in ("orders", "django_session"):
        server.execute(f"DROP TABLE IF EXISTS app.{table}")
    if isinstance(server, PostgreSQL):
        server.execute("DROP SCHEMA app")


@pytest.fixture(params=[True, False], ids=["adapter", "no adapter"])
def store(request: pytest.FixtureRequest, site: Site, server: Server) -> Iterator[Store]:
    """The store, with the adapter and without any."""
    name = "postgresql" if isinstance(server, PostgreSQL) else "mariadb"
    store = Store(site, server, request.getfixturevalue(f"{name}_proxy"), request.param)
    store.configure()
    yield store
    store.close()


def test_lost_read(store: Store) -> None:
    """G3: a read that is lost is replayed."""

    def view(request: Any) -> HttpResponse:
        store.execute("SELECT 1")
        store.cut()
        store.execute("SELECT 1")
        return HttpResponse("hello")

    assert store.outcome(view, "GET") == (200, "recovered")


def test_failed_connect(store: Store) -> None:
    """G3: a connect that fails is replayed by the mark."""

    def view(request: Any) -> HttpResponse:
        store.cut("connect")
        store.execute("SELECT 1")
        return HttpResponse("hello")

    assert store.outcome(view) == (503, "not-replayable")
    assert store.outcome(rollback_safe(view)) == (200, "recovered")


def test_lost_write_under_atomic_requests(store: Store) -> None:
    """G1: what ATOMIC_REQUESTS rolls back is there once after the replay, and so are its
    on_commit functions; without the adapter MariaDB's outcome may be unknown (G4)."""
    store.configure(ATOMIC_REQUESTS=True)
    done: list[int] = []

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        number = current_attempt().number
        transaction.on_commit(lambda: done.append(number), using=store.alias)
        store.add("a")
        store.cut()
        store.add("b")
        return HttpResponse("hello")

    if store.watched or isinstance(store.server, PostgreSQL):
        assert store.outcome(view) == (200, "recovered")
        assert (store.orders(), done) == (["a", "b"], [2])
    else:  # mysqlclient can't tell any more that it was in a transaction
        assert store.outcome(view) == (503, "unknown")
        assert (store.orders(), done) == ([], [])


@pytest.mark.parametrize(("at", "stored"), [("commit", ["a"]), ("before-commit", [])])
def test_lost_commit_of_atomic_requests(store: Store, at: str, stored: list[str]) -> None:
    """G4: a COMMIT that is lost after the view is not repeated."""
    store.configure(ATOMIC_REQUESTS=True)

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        store.add("a")
        store.cut(at)
        return HttpResponse("hello")

    assert store.outcome(view) == (503, "unknown")
    assert store.orders() == stored


def test_lost_write_without_a_transaction(store: Store) -> None:
    """G4: without one each write is a commit of its own."""

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        store.execute("SELECT 1")
        store.cut()
        store.add("a")
        return HttpResponse("hello")

    assert store.outcome(view) == (503, "unknown")
    assert store.orders() == ["a"]


@pytest.mark.parametrize("status", [500, 404])
def test_failure_that_the_view_handles(store: Store, status: int) -> None:
    """An adapter sees a failure that the view makes a 500 of; below 500 the answer is sent."""

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        store.execute("SELECT 1")
        store.cut()
        try:
            store.execute("SELECT 1")
        except DatabaseError:
            return HttpResponse("sorry", status=status)
        return HttpResponse("hello")

    replayed = store.watched and status == 500
    assert store.outcome(view) == ((200, "recovered") if replayed else (status, None))


@pytest.mark.parametrize("store", [True], indirect=True)  # Django itself would leave it open
def test_page_for_errors_with_a_database(store: Store) -> None:
    """G8: a page for errors that uses the database leaves no connection behind before the wait."""
    seen: list[int] = []

    def sorry(request: Any) -> HttpResponse:
        store.execute("SELECT 1")
        return HttpResponse(status=500)

    def view(request: Any) -> HttpResponse:
        if current_attempt().number == 1:
            raise DisconnectionError("gone")
        return HttpResponse("hello")

    def note(report: Any) -> None:
        if report.outcome is None:
            store.proxy.wait_for_connections(0)
            seen.append(store.proxy.connections)

    store.site.options["hooks"] = [note]
    assert store.outcome(URLs(path("", view), handler500=sorry), "GET") == (200, "recovered")
    assert seen == [0]


APPS = ["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions"]


@pytest.fixture
def session(store: Store) -> Iterator[dict[str, str]]:
    """The cookie of a session that is stored."""
    store.site.middleware = [SESSIONS, USERS]
    with override_settings(INSTALLED_APPS=APPS, DATABASE_ROUTERS=[store]):
        from django.contrib.sessions.backends.db import SessionStore
        from django.contrib.sessions.models import Session

        with connections[store.alias].schema_editor() as editor:
            editor.create_model(Session)
        stored = SessionStore()
        stored["name"] = "somebody"
        stored.save()
        connections[store.alias].close()
        yield {"Cookie": f"sessionid={stored.session_key}"}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_session_that_is_loaded_before_the_view(
    store: Store, session: dict[str, str], method: str
) -> None:
    """G3: a session that can't be loaded is a failure before routing: there is no mark yet."""

    class LoadsIt(Plain):
        async_capable = False

        def before(self, request: Any) -> None:
            store.cut("connect")
            assert request.session["name"] == "somebody"
            assert request.user.is_anonymous

    store.site.middleware.append(LoadsIt)
    view = rollback_safe(lambda request: HttpResponse(request.session["name"]))
    expected = (200, "recovered") if method == "GET" else (503, "not-replayable")
    assert store.outcome(view, method, headers=session) == expected


def test_session_that_is_loaded_by_the_view(store: Store, session: dict[str, str]) -> None:
    """G3: one that is loaded when the view asks is a failure of the view."""

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        store.cut("connect")
        return HttpResponse(request.session["name"])

    assert store.outcome(view, headers=session) == (200, "recovered")


def test_session_that_can_not_be_created(store: Store, session: dict[str, str]) -> None:
    """G3: a new session that can't be saved after the view is a failure, and replayed."""

    def view(request: Any) -> HttpResponse:
        request.session["name"] = "somebody else"
        store.cut("connect")
        return HttpResponse("hello")

    assert store.outcome(view, "GET") == (200, "recovered")


def test_session_that_can_not_be_saved(store: Store, session: dict[str, str]) -> None:
    """Django takes any failure to save a session for its having been deleted: a 400, which is
    sent."""

    def view(request: Any) -> HttpResponse:
        request.session["name"] += "!"
        store.cut()
        return HttpResponse("hello")

    assert store.outcome(view, "GET", headers=session) == (400, None)
