"""The policy from an app's own configuration: keys ``RETRY_…``, one for each field."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import Field, fields, replace
from typing import Any, Final

from retrymw._core.policy import RetryPolicy

__all__ = ["read_config"]

_PREFIX: Final = "RETRY_"
_ENABLED: Final = "RETRY_ENABLED"
_FIELDS: Final[Mapping[str, Field[Any]]] = {
    _PREFIX + field.name.upper(): field for field in fields(RetryPolicy)
}
_SWITCHES: Final = {"true": True, "1": True, "false": False, "0": False}


def read_config(config: Mapping[str, Any], policy: Any) -> tuple[bool, Any]:
    """Whether retrymw is enabled, and ``policy`` with the fields that ``config`` sets.

    A text, which is what the environment has, stands for what JSON makes of it; for a set of words
    it may be a list with commas.

    Args:
        config: keys of others are left alone.
        policy: None for ``RetryPolicy()``.

    Raises:
        TypeError, ValueError: naming the key, its value and what is allowed.
    """
    enabled = True
    changes: dict[str, Any] = {}
    for key in sorted(key for key in config if key.startswith(_PREFIX)):
        value = config[key]
        if key == _ENABLED:
            switch = _SWITCHES.get(str(value).lower())
            if switch is None:
                raise ValueError(f"{key} is {value!r}; allowed: True or False")
            enabled = switch
        elif key in _FIELDS:
            changes[_FIELDS[key].name] = _parsed(value, _FIELDS[key].default)
        else:
            raise ValueError(_unknown(key))
    if policy is None:
        policy = RetryPolicy()
    elif not isinstance(policy, RetryPolicy):
        return enabled, policy  # for the middleware to refuse
    try:
        return enabled, replace(policy, **changes)
    except (TypeError, ValueError) as error:
        raise type(error)(_retold(str(error))) from error


def _parsed(value: Any, default: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        if isinstance(default, frozenset):
            return [word.strip() for word in value.split(",")]
        return value


def _unknown(key: str) -> str:
    """Its value is not told: it may be somebody else's, and a secret."""
    allowed = sorted((*_FIELDS, _ENABLED))
    names = [known.removeprefix(_PREFIX) for known in allowed]
    near = [_PREFIX + name for name in difflib.get_close_matches(key.removeprefix(_PREFIX), names)]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{key} is set, but there is no such key; {hint}allowed: {', '.join(allowed)}"


def _retold(message: str) -> str:
    """What the policy says of its field, said of the key."""
    return re.sub(r"\bRetryPolicy\.(\w+)", lambda field: _PREFIX + field[1].upper(), message)
