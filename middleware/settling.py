"""Bringing admission up to date with what was done under grants, which C counts by itself."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resource_monitor.middleware.gate import Gate


class Settled:
    """Within the lock of ``gate``: admission as it is once everything is told that was done under grants; meanwhile
    nobody starts under one. Whoever is interrupted leaves that to the next."""

    __slots__ = ("_gate",)

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __enter__(self) -> None:
        gate = self._gate
        turns = gate.turns
        gate._behind = False
        if turns.close():
            try:
                while (used := turns.take()) is not None:
                    _, started, _, ended, lost, *_ = used
                    gate._admitted += started
                    gate._in_flight += started - ended - lost
                    gate._wasted += lost
                    gate._admission.settle(*used)
            except MemoryError:
                gate._behind = True  # what is not told yet is the next time

    def __exit__(self, *error: object) -> None:
        gate, admission = self._gate, self._gate._admission
        most = admission.max_in_flight
        with suppress(MemoryError):
            gate.turns.open(admission.era, admission.in_flight, -1 if most is None else most, gate._told)
