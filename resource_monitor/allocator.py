"""What the memory allocator of this process holds, and asking it to give back what it does not need.

Which allocator that is, is settled by the object that serves ``malloc``. Knows nothing of limits.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache
from typing import TextIO

from resource_monitor._native import ffi, lib
from resource_monitor.errors import NotApplicable

_NAMES = {
    lib.RM_HEAP_JEMALLOC: "jemalloc",
    lib.RM_HEAP_GLIBC: "glibc",
    lib.RM_HEAP_MIMALLOC: "mimalloc",
    lib.RM_HEAP_TCMALLOC: "tcmalloc",
    lib.RM_HEAP_UNKNOWN: "unknown",
}


@dataclass(frozen=True, slots=True)
class AllocatorStatistics:
    """What the allocator says of itself; bytes. Figures that an allocator does not keep are 0.

    ``allocated`` is in use by the program, ``active`` in pages that hold something in use, ``metadata`` the allocator's
    own, ``resident`` backed by memory, ``mapped`` and ``retained`` address space, ``dirty`` unused but still resident.
    mimalloc tells ``mapped`` alone. Source: jemalloc(3), ``stats.*``; mallinfo2(3); gperftools'
    ``malloc_extension.h``; ``mi_process_info``.
    """

    allocated: int
    active: int
    metadata: int
    resident: int
    mapped: int
    retained: int
    dirty: int


@dataclass(frozen=True, slots=True)
class Allocator:
    """The allocator that serves ``malloc``: its ``name`` and the path of the ``object`` it was loaded from.

    Python's own small-object arenas (1 MiB each, from ``mmap``) are outside of it unless ``PYTHONMALLOC=malloc``.
    """

    name: str
    object: str

    def dirty(self) -> int | None:
        """Bytes held unused that :meth:`relieve` gives back for certain; ``None`` when the allocator cannot tell.

        jemalloc's ``stats.arenas.4096.pdirty`` pages, tcmalloc's ``pageheap_free_bytes``. glibc's free bytes say
        nothing about whole free pages, and mimalloc tells no such figure.
        """
        out = ffi.new("unsigned long long *")
        return int(out[0]) if lib.rm_heap_dirty(out) == 0 else None

    def relieve(self) -> bool:
        """Give unused memory back to the kernel; False when the allocator offers no way to do it.

        jemalloc's ``arena.4096.purge``, glibc's ``malloc_trim(0)``, tcmalloc's ``ReleaseFreeMemory``, and
        ``mi_collect(true)``, which reaches the memory of the calling thread alone.
        """
        return bool(lib.rm_heap_relieve() == 0)

    def statistics(self) -> AllocatorStatistics:
        """The figures of this moment. Raises :class:`NotApplicable` for an allocator that keeps none."""
        out = ffi.new("rm_heap_statistics *")
        if lib.rm_heap_read(out) != 0:
            raise NotApplicable(
                f"The allocator of this process ({self.object or self.name}) keeps no statistics; "
                "preload jemalloc to have them."
            )
        return AllocatorStatistics(
            out.allocated, out.active, out.metadata, out.resident, out.mapped, out.retained, out.dirty
        )


@cache
def allocator() -> Allocator:
    """The allocator of this process; it cannot change while the process lives."""
    return Allocator(_NAMES[lib.rm_heap_detect()], ffi.string(lib.rm_heap_object()).decode(errors="replace"))


def allocator_stats_enabled() -> bool:
    """Whether the allocator keeps statistics; a jemalloc built with ``--disable-stats`` does not."""
    return bool(lib.rm_heap_has_statistics())


def print_allocator_stats(file: TextIO | None = None) -> None:
    """Print the allocator's own report to ``file``, by default ``sys.stderr``.

    jemalloc's ``malloc_stats_print``, glibc's ``malloc_info`` (XML), mimalloc's ``mi_stats_print_out``, tcmalloc's
    ``MallocExtension_GetStats``. Raises :class:`NotApplicable` for an allocator that has no report.
    """
    with os.fdopen(os.memfd_create("allocator-report", os.MFD_CLOEXEC), "r+", errors="replace") as report:
        error = lib.rm_heap_report(report.fileno())
        if error != 0:
            raise NotApplicable(
                f"The allocator of this process ({allocator().object or 'unknown'}) gave no report "
                f"({os.strerror(error)}); preload jemalloc to have one."
            )
        report.seek(0)
        (sys.stderr if file is None else file).write(report.read())
