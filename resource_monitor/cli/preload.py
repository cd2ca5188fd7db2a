"""Finds a jemalloc that can be preloaded here and makes certain that it would serve ``malloc``; starts no service.

ld.so(8): an object that cannot be preloaded is skipped with a message and everything else goes on, so that only a
throwaway child process tells.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from ctypes.util import find_library
from dataclasses import dataclass
from glob import glob

_SONAME = "libjemalloc.so.2"
_DIRECTORIES = ("/usr/local/lib", "/usr/lib/*-linux-*", "/usr/lib64", "/usr/lib", "/lib")
_ASK = "from resource_monitor.allocator import allocator as a; print(a().name, a().object)"
_LINKER = r"object '{}' from LD_PRELOAD cannot be preloaded \((.*?)\)"  # glibc, elf/rtld.c
_COMPLAINT = re.compile(r"<jemalloc>: (.*)")  # jemalloc, src/jemalloc.c, malloc_conf_error
_HANGS = 60  # seconds


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of a throwaway child: the ``allocator`` it had, why that is not the library (``problem``), and what
    jemalloc said of its settings (``complaint``); the last two are empty where there was nothing."""

    library: str
    allocator: str
    problem: str
    complaint: str


def entries(environment: Mapping[str, str]) -> list[str]:
    """What LD_PRELOAD names; ld.so separates by colons and spaces."""
    return [entry for entry in re.split("[: ]", environment.get("LD_PRELOAD", "")) if entry]


def preloading(environment: Mapping[str, str], library: str) -> dict[str, str]:
    """``environment`` with ``library`` after what LD_PRELOAD names already."""
    present = entries(environment)
    return {**environment, "LD_PRELOAD": ":".join(present if library in present else [*present, library])}


def find(environment: Mapping[str, str]) -> Trial | None:
    """The first jemalloc that works, ``None`` without one."""
    trials = (attempt(library, preloading(environment, library)) for library in _candidates(environment))
    return next((trial for trial in trials if not trial.problem), None)


def attempt(library: str, environment: Mapping[str, str]) -> Trial:
    """Start a Python in ``environment``, which preloads ``library``, and see whether it gets its memory there."""
    try:
        ran = subprocess.run(
            [sys.executable, "-c", _ASK],
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=_HANGS,
        )
    except subprocess.TimeoutExpired:
        return Trial(library, "", "a Python that preloads it hangs", "")
    complaint = _COMPLAINT.search(ran.stderr)
    name, _, served_by = ran.stdout.strip().partition(" ")
    refused = re.search(_LINKER.format(re.escape(library)), ran.stderr)
    if refused:
        problem = refused[1]
    elif ran.returncode:
        problem = f"a Python that preloads it ends with status {ran.returncode}"
    elif not _same(served_by, library):
        problem = f"malloc comes from {served_by or 'elsewhere'} all the same"
    else:
        problem = ""
    return Trial(library, name, problem, complaint[1] if complaint else "")


def _same(path: str, library: str) -> bool:
    """Whether the object loaded from ``path`` is ``library``: a path, or a name that the dynamic linker resolved."""
    if "/" in library:
        return os.path.realpath(path) == os.path.realpath(library)
    return os.path.basename(path) == library


def _candidates(environment: Mapping[str, str]) -> Iterator[str]:
    """What may be a jemalloc: what is preloaded already, names that suit children of every architecture, files."""
    named = [entry for entry in entries(environment) if "jemalloc" in os.path.basename(entry)]
    yield from dict.fromkeys([*named, _SONAME, *filter(None, [find_library("jemalloc")])])
    for directory in (*environment.get("LD_LIBRARY_PATH", "").split(":"), f"{sys.prefix}/lib", *_DIRECTORIES):
        if directory:
            yield from sorted(glob(f"{directory}/libjemalloc.so*"))
