"""Marks: put on by a decorator, found again behind whatever frameworks do to an endpoint."""

from __future__ import annotations

import functools

import pytest
import tenacity
from django.conf import settings

from retrymw import idempotent, never_replay, rollback_safe
from retrymw._core.policy import MarkKind
from retrymw.marks import read_mark

MARKS = [
    (idempotent, MarkKind.IDEMPOTENT),
    (rollback_safe, MarkKind.ROLLBACK_SAFE),
    (never_replay, MarkKind.NEVER_REPLAY),
]
WITH_OVERRIDES = [idempotent, rollback_safe]


def endpoint():
    """An endpoint, new for each test, that must not be called."""

    def view(*args, **kwargs):
        pytest.fail("the mark was to be found without calling the endpoint")

    return view


def kind_of(found, method="POST"):
    mark = read_mark(found, method)
    return mark.kind if mark is not None else None


# Putting it on.


@pytest.mark.parametrize(("decorate", "kind"), MARKS)
def test_bare(decorate, kind):
    """A decorator without parentheses marks the endpoint and gives the very same one back."""
    view = endpoint()
    assert decorate(view) is view
    assert kind_of(view) is kind
    assert not read_mark(view, "POST").overrides


@pytest.mark.parametrize("decorate", WITH_OVERRIDES)
def test_with_parentheses(decorate):
    """Parentheses without overrides change nothing."""
    view = endpoint()
    assert decorate()(view) is view
    assert not read_mark(view, "POST").overrides


@pytest.mark.parametrize("decorate", WITH_OVERRIDES)
def test_overrides(decorate):
    """A mark carries what it overrides of the policy."""
    wait = tenacity.wait_none()
    overrides = {"max_replays": 2, "deadline": 1.5, "wait": wait, "kinds": {"conflict"}}
    assert read_mark(decorate(**overrides)(endpoint()), "POST").overrides == overrides


@pytest.mark.parametrize("decorate", WITH_OVERRIDES)
@pytest.mark.parametrize("name", ["max_retries", "methods", "body_limit", "hold", "expose"])
def test_unknown_override(decorate, name):
    """An override that there is not, or that comes too late for routing, raises at decoration."""
    with pytest.raises(TypeError, match=f"{name}=.*allowed: deadline, kinds, max_replays, wait"):
        decorate(**{name: 1})


@pytest.mark.parametrize("decorate", WITH_OVERRIDES)
@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ({"max_replays": -1}, ValueError),
        ({"max_replays": "2"}, TypeError),
        ({"deadline": 0}, ValueError),
        ({"deadline": None}, TypeError),
        ({"wait": 0.1}, TypeError),
        ({"kinds": {"deadlock"}}, ValueError),
    ],
)
def test_wrong_override(decorate, overrides, error):
    """A wrong value raises at decoration, and the message names the field."""
    [name] = overrides
    with pytest.raises(error, match=name):
        decorate(**overrides)


def test_never_replay_takes_no_overrides():
    """There is nothing to override where nothing is replayed."""
    with pytest.raises(TypeError):
        never_replay(max_replays=0)


@pytest.mark.parametrize(("decorate", "kind"), MARKS)
@pytest.mark.parametrize("wrong", ["/orders", 3, object()])
def test_not_an_endpoint(decorate, kind, wrong):
    """What can't be called can't be marked; the message names the mark and the value."""
    with pytest.raises(TypeError, match=f"@{kind.value} was given"):
        decorate(wrong)


@pytest.mark.parametrize(("decorate", "kind"), MARKS)
def test_classmethod_is_refused(decorate, kind):
    """A mark on a classmethod object would not be found again: it belongs below @classmethod."""
    with pytest.raises(TypeError, match=f"@{kind.value} was given"):
        decorate(classmethod(endpoint()))


@pytest.mark.parametrize(("decorate", "kind"), MARKS)
def test_staticmethod_is_found_or_refused(decorate, kind):
    """G3: a mark on a staticmethod object is not lost in silence."""
    try:
        view = type("View", (), {"post": decorate(staticmethod(endpoint()))})
    except TypeError:
        return
    assert kind_of(view) is kind


@pytest.mark.parametrize(("decorate", "kind"), MARKS)
def test_bound_method_is_found_or_refused(decorate, kind):
    """A bound method takes no attribute: a TypeError says so, if it can't be marked."""
    view = type("View", (), {"post": endpoint()})()
    try:
        marked = decorate(view.post)
    except TypeError:
        return
    assert kind_of(marked) is kind


@pytest.mark.parametrize(("decorate", "kind"), MARKS)
def test_bound_method_of_a_marked_function(decorate, kind):
    """A method that is marked in its class is an endpoint when it is bound, too."""
    assert kind_of(type("View", (), {"post": decorate(endpoint())})().post) is kind


@pytest.mark.parametrize(
    ("first", "second"), [(idempotent, never_replay), (rollback_safe, idempotent)]
)
def test_conflicting_marks(first, second):
    """Two different marks on one endpoint contradict each other: the second raises."""
    view = first(endpoint())
    with pytest.raises(TypeError, match="is marked @"):
        second(view)


def test_conflicting_overrides():
    """The same mark with other overrides is another mark."""
    view = idempotent(max_replays=1)(endpoint())
    with pytest.raises(TypeError, match="is marked @idempotent already"):
        idempotent(max_replays=2)(view)


def test_conflict_behind_a_wrapper():
    """A wrapper that carries a mark can't be given another one."""
    view = idempotent(endpoint())
    wrapper = functools.wraps(view)(endpoint())
    with pytest.raises(TypeError, match="is marked @idempotent already"):
        rollback_safe(wrapper)


def test_same_mark_twice():
    """The same mark twice says nothing new."""
    assert kind_of(idempotent(idempotent(endpoint()))) is MarkKind.IDEMPOTENT


# Finding it.


@pytest.mark.parametrize("unmarked", [None, endpoint(), object(), type("View", (), {}), "view"])
def test_no_mark(unmarked):
    """What is not marked has no mark, whatever it is."""
    assert read_mark(unmarked, "POST") is None


@pytest.mark.parametrize(("decorate", "kind"), MARKS)
def test_through_wraps(decorate, kind):
    """G3: a decorator that uses functools.wraps does not hide the mark of what it wraps."""
    view = decorate(endpoint())
    for _ in range(3):
        view = functools.wraps(view)(lambda inner=view: inner())
    assert kind_of(view) is kind


def test_through_wrapped_alone():
    """``__wrapped__`` is followed where a wrapper has not taken the attributes over."""
    view = idempotent(endpoint())
    wrapper = functools.update_wrapper(endpoint(), view, updated=())
    assert kind_of(wrapper) is MarkKind.IDEMPOTENT


@pytest.mark.parametrize(("decorate", "kind"), MARKS)
def test_through_partial(decorate, kind):
    """G3: functools.partial, once or twice, does not hide the mark."""
    view = functools.partial(functools.partial(decorate(endpoint()), 1), 2)
    assert kind_of(view) is kind


@pytest.mark.parametrize(("decorate", "kind"), MARKS)
def test_on_a_partial(decorate, kind):
    """A partial itself can be marked."""
    assert kind_of(decorate(functools.partial(endpoint()))) is kind


def test_wrapper_goes_before_what_it_wraps():
    """The outermost mark counts: it is the one that was put on last, knowing the rest."""
    wrapper = functools.update_wrapper(endpoint(), idempotent(endpoint()), updated=())
    assert kind_of(never_replay(wrapper)) is MarkKind.NEVER_REPLAY


def test_endless_wrappers():
    """An endpoint that wraps itself has no mark, and ends the search."""
    view = endpoint()
    view.__wrapped__ = view
    assert read_mark(view, "POST") is None


class Orders:
    """A class-based endpoint, like Starlette's HTTPEndpoint or Flask's MethodView."""

    get = never_replay(endpoint())
    post = idempotent(endpoint())
    put = endpoint()


MARKED_BY_METHOD = [
    ("GET", MarkKind.NEVER_REPLAY),
    ("HEAD", MarkKind.NEVER_REPLAY),
    ("POST", MarkKind.IDEMPOTENT),
    ("PUT", None),
    ("DELETE", None),
    ("WEIRD-METHOD", None),
]


def as_view(cls):
    """What ``as_view()`` of Flask and Django makes of a class: a function that knows it."""
    view = endpoint()
    view.view_class = cls
    return view


@pytest.mark.parametrize(("method", "kind"), MARKED_BY_METHOD)
@pytest.mark.parametrize(
    "make",
    [lambda: Orders, lambda: as_view(Orders), lambda: functools.wraps(as_view(Orders))(endpoint())],
    ids=["class", "as_view", "wrapped as_view"],
)
def test_class_by_method(make, method, kind):
    """G3: a class-based endpoint has the mark of the method that will run; HEAD runs get."""
    assert kind_of(make(), method) is kind


@pytest.mark.parametrize(("method", "kind"), MARKED_BY_METHOD)
def test_instance_by_method(method, kind):
    """An instance has the marks that its class has."""
    assert kind_of(Orders(), method) is kind


def test_head_of_its_own():
    """Where a class has a head(), HEAD has that one's mark and not the one of get."""
    view = type("View", (Orders,), {"head": endpoint()})
    assert kind_of(view, "HEAD") is None
    assert kind_of(view, "GET") is MarkKind.NEVER_REPLAY


@pytest.mark.parametrize("make", [lambda cls: cls, as_view, lambda cls: cls()])
def test_class_mark(make):
    """The mark of a class is that of all its methods, but for those that have one of their own."""
    cls = rollback_safe(type("View", (), {"get": endpoint(), "post": idempotent(endpoint())}))
    assert kind_of(make(cls), "GET") is MarkKind.ROLLBACK_SAFE
    assert kind_of(make(cls), "PUT") is MarkKind.ROLLBACK_SAFE
    assert kind_of(make(cls), "POST") is MarkKind.IDEMPOTENT


def test_inherited_marks():
    """A subclass has the marks of its base until it overrides the method or has a mark itself."""
    base = rollback_safe(type("Base", (), {"post": idempotent(endpoint())}))
    assert kind_of(type("Same", (base,), {}), "POST") is MarkKind.IDEMPOTENT
    other = type("Other", (base,), {"post": endpoint()})
    assert kind_of(other, "POST") is MarkKind.ROLLBACK_SAFE
    assert kind_of(never_replay(other), "POST") is MarkKind.NEVER_REPLAY
    assert kind_of(base, "PUT") is MarkKind.ROLLBACK_SAFE


def test_method_in_a_class_behind_wraps():
    """A decorated method of a class-based endpoint keeps its mark."""
    post = idempotent(endpoint())
    view = type("View", (), {"post": functools.wraps(post)(endpoint())})
    assert kind_of(view) is MarkKind.IDEMPOTENT


@pytest.mark.parametrize(("decorate", "kind"), MARKS)
def test_callable_object(decorate, kind):
    """An object with a marked ``__call__``, or of a marked class, is a marked endpoint."""
    assert kind_of(decorate(type("View", (), {"__call__": endpoint()}))()) is kind
    assert kind_of(type("View", (), {"__call__": decorate(endpoint())})()) is kind


def test_overrides_are_found_too():
    """The overrides of the mark that is found are its own."""
    view = type("View", (), {"post": idempotent(max_replays=1)(endpoint())})
    assert read_mark(as_view(view), "POST").overrides == {"max_replays": 1}


class Handler:
    """A framework's object for an endpoint: with ``fn``, as Litestar has it, or ``func``."""

    def __init__(self, name, wrapped):
        setattr(self, name, wrapped)


@pytest.mark.parametrize("name", ["fn", "func", "__wrapped__"])
@pytest.mark.parametrize(("decorate", "kind"), MARKS)
def test_object_that_wraps(decorate, kind, name):
    """An object that has the endpoint, or another such object, is as marked as it is."""
    assert kind_of(Handler(name, Handler("func", decorate(endpoint())))) is kind
    assert kind_of(Handler(name, endpoint())) is None


def test_object_that_is_marked_itself():
    """A mark above the decorator that made an object of the endpoint goes before one below it."""
    handler = type("Marked", (Handler,), {"__call__": endpoint()})("fn", never_replay(endpoint()))
    assert kind_of(handler) is MarkKind.NEVER_REPLAY
    assert kind_of(idempotent(handler)) is MarkKind.IDEMPOTENT


@pytest.mark.parametrize(
    "wrap", [lambda method: method, functools.partial, functools.partial(Handler, "fn")]
)
def test_bound_method_of_a_marked_class(wrap):
    """G3: a method that is itself the endpoint has the mark of its class, if none of its own."""
    methods = {"add": endpoint(), "charge": never_replay(endpoint())}
    methods["made"] = classmethod(endpoint())
    marked = rollback_safe(type("Orders", (), methods))
    for cls in (marked, type("More", (marked,), {})):
        assert kind_of(wrap(cls().add)) is MarkKind.ROLLBACK_SAFE
        assert kind_of(wrap(cls.made)) is MarkKind.ROLLBACK_SAFE
        assert kind_of(wrap(cls().charge)) is MarkKind.NEVER_REPLAY
    assert kind_of(wrap(type("Other", (), methods)().add)) is None


def test_attributes_of_a_class_are_not_what_it_wraps():
    """G3: a class-based endpoint may have a marked function of that name among its own."""
    view = type("View", (), {"get": endpoint(), "fn": idempotent(endpoint())})
    assert kind_of(view, "POST") is None


def test_view_set_of_django_rest_framework():
    """G3: a view set has its methods by other names; their marks go before that of the class."""
    if not settings.configured:
        settings.configure()
    from rest_framework.viewsets import ViewSet

    @idempotent
    class Orders(ViewSet):
        @rollback_safe
        def create(self, request): ...

        def destroy(self, request): ...

    view = Orders.as_view({"post": "create", "delete": "destroy"})
    assert read_mark(view, "POST").kind is MarkKind.ROLLBACK_SAFE
    assert read_mark(view, "DELETE").kind is MarkKind.IDEMPOTENT
    assert read_mark(view, "PATCH").kind is MarkKind.IDEMPOTENT
