"""The only C of the project: ``_probe`` reads what the kernel and the allocator say, without Python-level parsing, and
guards allocations; ``_turn`` lets requests in for which Python need not be asked."""

from resource_monitor._native import _turn
from resource_monitor._native._probe import ffi, lib

__all__ = ["ffi", "lib"]

_turn.use_guard(*(int(ffi.cast("uintptr_t", function)) for function in lib.rm_guard_functions))
