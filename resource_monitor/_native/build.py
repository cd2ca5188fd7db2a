"""Builds ``resource_monitor._native._probe`` with cffi in API mode; run by setup.py, never imported at run time."""

from pathlib import Path

import cffi

here = Path(__file__).parent

ffibuilder = cffi.FFI()
ffibuilder.cdef((here / "probe.h").read_text())
ffibuilder.cdef((here / "guard.h").read_text())
ffibuilder.cdef('extern "Python" void rm_guard_event(int);')
ffibuilder.set_source(
    "resource_monitor._native._probe",
    '#include "probe.h"\n#include "guard.h"',
    sources=[f"resource_monitor/_native/{name}.c" for name in ("probe", "parse", "count", "heap", "guard")],
    depends=[f"resource_monitor/_native/{name}.h" for name in ("probe", "text", "guard")],
    include_dirs=["resource_monitor/_native"],
    libraries=["dl"],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden"],
)
