"""Options that say nothing where a framework reads the bodies of requests itself, or its answers are not HTTP's."""

from __future__ import annotations

from collections.abc import Mapping

from resource_monitor.errors import ConfigurationError


def refuse_inapplicable(given: Mapping[str, object], framework: str, instead: Mapping[str, str]) -> None:
    """Raises :class:`ConfigurationError` for a ``given`` option that ``framework`` has its own thing for, ``instead``;
    nobody would read it."""
    for option, own in instead.items():
        if given.get(option) is not None:
            raise ConfigurationError(
                f"{option}={given[option]!r} says nothing in {framework}, which has its own way; use {own}."
            )
