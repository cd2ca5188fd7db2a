"""What the options may be. Owns the sentences for values that cannot be meant; ``environment`` knows where they come
from.

Each check gives the value as it is used, and raises :class:`ConfigurationError` in the name by which it was given.
"""

from __future__ import annotations

from resource_monitor.errors import ConfigurationError
from resource_monitor.units import Amount, parse_amount, parse_size


class Names(dict[str, str]):
    """What people call the options that they gave elsewhere than to the constructor: the name of a variable or a key
    of a config. Any other option is called by its own name."""

    def __missing__(self, option: str) -> str:
        return option


def amount(name: str, value: int | str) -> Amount:
    """Bytes, or a share of the limit."""
    try:
        return parse_amount(value)
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error}") from None


def seconds(name: str, value: float) -> float:
    """A time to wait."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 3600:
        raise ConfigurationError(f"{name}={value!r} is no time to wait; give seconds, from 0 to 3600.")
    return float(value)


def retry_after(name: str, value: int) -> int:
    """Seconds after which to come again."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 86400:
        raise ConfigurationError(f"{name}={value!r} is not a number of seconds; give a whole number from 1 to 86400.")
    return value


def status(name: str, value: int) -> int:
    """What the surplus is answered."""
    if isinstance(value, bool) or value not in (503, 429):
        raise ConfigurationError(f"{name}={value!r} is no status for want of memory; give 503 or 429.")
    return int(value)


def requests(name: str, value: int | None) -> int | None:
    """How many requests there may be."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10**9):
        raise ConfigurationError(
            f"{name}={value!r} is no number of requests; give a whole number from 1 to 10**9, or None."
        )
    return value


def body(name: str, value: int | str | None) -> int | None:
    """The size of a body in bytes."""
    try:
        return None if value is None else parse_size(value)
    except ConfigurationError:
        raise ConfigurationError(
            f'{name}={value!r} is no size of a body; give bytes as a number, a size such as "10MiB", or None.'
        ) from None


def flag(name: str, value: bool) -> bool:
    """Yes or no."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name}={value!r} is neither true nor false; give one of them.")
    return value


def flag_or_none(name: str, value: bool | None) -> bool | None:
    """Yes, no, or as it turns out."""
    if value is not None and not isinstance(value, bool):
        raise ConfigurationError(f"{name}={value!r} is neither true, false nor none; give one of them.")
    return value
