"""Requests that were lost to memory: recognising them, and letting go of what they held."""

from __future__ import annotations

import traceback


def lost_to_memory(error: BaseException | None) -> bool:
    """Whether ``error`` is a ``MemoryError``, was raised from one, or is a group of nothing else."""
    return caused_by(error, MemoryError)


def caused_by(error: BaseException | None, kind: type[BaseException], _behind: frozenset[int] = frozenset()) -> bool:
    """Whether ``error`` is of ``kind``, was raised from such an error, or is a group of nothing else."""
    # a group may be the cause of what it holds: Starlette raises the only error of one from the group itself
    if error is None or id(error) in _behind:
        return False
    behind = _behind | {id(error)}
    if isinstance(error, BaseExceptionGroup):
        return all(caused_by(inner, kind, behind) for inner in error.exceptions)
    return isinstance(error, kind) or caused_by(error.__cause__, kind, behind)


def let_go(error: BaseException | None) -> None:
    """Free what the frames of ``error`` and of the errors behind it hold, without waiting for the garbage collector."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        waiting += (current.__cause__, current.__context__)
        if isinstance(current, BaseExceptionGroup):
            waiting += current.exceptions
        traceback.clear_frames(current.__traceback__)
        current.__traceback__ = None
