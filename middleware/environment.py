"""Where the options come from when the constructor was not given them: a config, as Flask has one, and then the
environment. Owns the variables and how their texts are read; ``checks`` says what the values may be.

Each option that can be written as a text has a variable, ``RESOURCE_MONITOR_`` and its name in capitals; an empty one
is as good as none. Of ``RESOURCE_MONITOR_LIMIT`` the monitor takes care, for it is there without an app as well.
Variables of other names are nobody's mistake: Kubernetes makes some for a service that is called resource-monitor.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, cast

from resource_monitor.middleware.checks import Names
from resource_monitor.middleware.options import Options


def _whole(text: str) -> object:
    try:
        return int(text)
    except ValueError:
        return text


def _number(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


def _flag(text: str) -> object:
    return _FLAGS.get(text.lower(), text)


def _paths(text: str) -> object:
    return [path for path in map(str.strip, text.split(",")) if path]


def _or_none(read: Callable[[str], object], none: object = None) -> Callable[[str], object]:
    return lambda text: none if text.lower() == "none" else read(text)


_FLAGS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
# What is no text of its kind is left as it is: the check of the option then says what is wrong with it.
_READ: dict[str, Callable[[str], object]] = {
    "min_available": _or_none(str),
    "request_cost": _or_none(str, none=0),
    "max_in_flight": _or_none(_whole),
    "max_wait": _number,
    "max_body": _or_none(str),
    "body_timeout": _number,
    "exempt": _paths,
    "status": _whole,
    "retry_after": _whole,
    "on_probe_error": str.lower,
    "allocation_guard": _or_none(_flag),
    "dry_run": _flag,
    "on_stuck": _or_none(str.lower),
    "stuck_after": _number,
}

VARIABLES: dict[str, str] = {option: f"RESOURCE_MONITOR_{option.upper()}" for option in _READ}
"""The variable of each option that has one."""


def settle(given: Options, config: Mapping[str, tuple[str, object]] | None = None) -> tuple[Options, Names]:
    """All options that were given somewhere, the constructor's before those of ``config`` before the environment's, and
    what people call those that are not the constructor's.

    ``config`` has a name and a value for an option; its texts are read like those of variables.
    """
    settled: dict[str, Any] = {}
    names = Names()
    for option, variable in VARIABLES.items():
        if text := os.environ.get(variable, "").strip():
            settled[option], names[option] = _READ[option](text), variable
    for option, (name, value) in (config or {}).items():
        read = _READ.get(option)
        settled[option] = read(value.strip()) if read is not None and isinstance(value, str) else value
        names[option] = name
    for option in given:
        names.pop(option, None)
    return cast(Options, {**settled, **given}), names
