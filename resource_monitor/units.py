"""Sizes as people write them ("64MiB", "5%") to bytes and back. Knows no limit: a share meets one later."""

import re
from dataclasses import dataclass

from resource_monitor.errors import ConfigurationError

# Decimal and binary prefixes as in IEC 80000-13; a bare K, M or G is binary, as in Docker's "256m".
_FACTORS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    **{prefix + unit: 2 ** (10 * power) for power, prefix in enumerate("kmgt", start=1) for unit in ("", "i", "ib")},
}
_SIZE = re.compile(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([a-z]{0,3})\s*", re.IGNORECASE | re.ASCII)
_PERCENTAGE = re.compile(r"\s*(\d{1,3}(?:\.\d{1,20})?)\s*%\s*", re.ASCII)
_MOST = 2**64 - 1  # bytes: what the kernel counts in
_CLAMP = re.compile(r"\s*clamp\(([^,()]*),([^,()]*),([^,()]*)\)\s*", re.IGNORECASE)
_SIZES = 'give bytes as a number, or a size such as "64MiB"'
_AMOUNTS = 'give bytes as a number, a size such as "64MiB", or a share of the limit such as "5%"'


@dataclass(frozen=True, slots=True)
class Amount:
    """Bytes, or a share of a limit that is known only later, kept between two bounds.

    ``share`` is a fraction (0.05 for 5 %) or ``None``; ``at_least`` and ``at_most`` are bytes. Without a share both
    bounds are the amount itself.
    """

    share: float | None
    at_least: int
    at_most: int | None

    def of(self, limit: int) -> int:
        """The amount in bytes for a limit of ``limit`` bytes."""
        wanted = self.at_least if self.share is None else max(self.at_least, int(self.share * limit))
        return wanted if self.at_most is None else min(wanted, self.at_most)


def parse_size(value: int | str) -> int:
    """Bytes from a non-negative integer or a text such as ``"64MiB"``, ``"64M"`` (the same) or ``"64MB"`` (10**6).

    Raises :class:`ConfigurationError`.
    """
    return _size(value, _SIZES)


def _size(value: int | str, remedy: str) -> int:
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        factor = _FACTORS.get(match[2].lower()) if match else None
        if match is None or factor is None:
            raise ConfigurationError(f"{value!r} is not a size; {remedy}.")
        size = int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor
    elif isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(f"{value!r} is not a size; {remedy}.")
    elif value < 0:
        raise ConfigurationError(f"{value!r} is negative; {remedy}.")
    else:
        size = value
    if size > _MOST:
        raise ConfigurationError(f"{value!r} is more bytes than any machine counts; give less than 16777216TiB.")
    return size


def parse_amount(value: int | str) -> Amount:
    """An :class:`Amount` from a size, a percentage, or ``"clamp(16MiB, 5%, 512MiB)"``: least, wanted, most, as in CSS.

    Raises :class:`ConfigurationError`.
    """
    if isinstance(value, str):
        if match := _CLAMP.fullmatch(value):
            at_least, at_most = parse_size(match[1]), parse_size(match[3])
            if at_least > at_most:
                raise ConfigurationError(
                    f"{value!r} has a lower bound above its upper bound; write clamp(least, wanted, most)."
                )
            inner = parse_amount(match[2])
            if inner.share is None:
                raise ConfigurationError(f"{value!r} clamps no share; give a percentage in the middle.")
            return Amount(inner.share, at_least, at_most)
        if match := _PERCENTAGE.fullmatch(value):
            share = float(match[1]) / 100
            if share > 1:
                raise ConfigurationError(f"{value!r} is more than the whole limit; give at most 100%.")
            return Amount(share, 0, None)
    size = _size(value, _AMOUNTS)
    return Amount(None, size, size)


def format_size(size: int) -> str:
    """``"3.2 MiB"``: bytes for people, with one decimal from KiB on."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
