"""Every memory limit of a process in the order in which they bite, and what that means. ``limits`` does the reading."""

from __future__ import annotations

from dataclasses import dataclass

from resource_monitor.limits import FULL, Limit, memory_limits
from resource_monitor.sources import Consequence, Flag
from resource_monitor.units import format_size

_HAPPENS = {
    Consequence.KILL: "the kernel kills a process",
    Consequence.THROTTLE: "the kernel makes allocations wait while it reclaims, so that the process may seem frozen",
    Consequence.MEMORY_ERROR: "allocations fail with MemoryError",
    Consequence.OS_ERROR: "system calls fail with OSError",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """All limits of one process at one moment, bytes.

    ``limits`` are ordered: those that bite by headroom, least first, then those that limit nothing, then those that
    could not be read. ``first`` is the one that bites first, ``None`` when nothing limits; ``sentence`` says what
    happens then.
    """

    limits: tuple[Limit, ...]
    first: Limit | None
    sentence: str


def explain(pid: int | None = None, *, declared: int | None = None, root: str = "/") -> Explanation:
    """Every memory limit of process ``pid`` (default: this one), read now. Raises :class:`ProbeError`.

    ``declared`` is a limit in bytes on the process's resident memory. Of another process the limits are read, not what
    its allocator holds.
    """
    reader = memory_limits(declared=declared, pid=pid, root=root)
    reader.read(FULL)
    ordered = tuple(sorted(reader.limits(), key=_order))
    biting = [limit for limit in ordered if limit.headroom is not None]
    return Explanation(ordered, biting[0] if biting else None, _sentence(biting))


def _order(limit: Limit) -> tuple[bool, bool, int, bool]:
    # of two limits with the same headroom the one that fails softly is met first
    kills = limit.consequence is Consequence.KILL
    return (Flag.UNREADABLE in limit.flags, limit.headroom is None, limit.headroom or 0, kills)


def _sentence(biting: list[Limit]) -> str:
    if not biting:
        return "Nothing limits the memory of this process."
    first = biting[0]
    text = (
        f"{_name(first)} bites first, after {format_size(first.headroom or 0)} more: then {_HAPPENS[first.consequence]}"
    )
    if first.consequence is Consequence.KILL:
        return f"{text}; no limit gives a warning before."
    kill = next((limit for limit in biting if limit.consequence is Consequence.KILL), None)
    if kill is None:
        return f"{text}; nothing kills it."
    return f"{text}; {_name(kill)} kills after {format_size(kill.headroom or 0)}."


def _name(limit: Limit) -> str:
    return f"{limit.kind} ({limit.where})"
