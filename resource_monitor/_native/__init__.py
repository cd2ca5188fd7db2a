"""The only C of the project: ``probe.c`` reads what the kernel and the allocator say, without Python-level parsing."""

from resource_monitor._native._probe import ffi, lib

__all__ = ["ffi", "lib"]
