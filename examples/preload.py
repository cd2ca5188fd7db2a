"""Finds out whether jemalloc can be preloaded here, without knowing where distributions put it."""

from __future__ import annotations

import os
import subprocess
import sys

JEMALLOC = "libjemalloc.so.2"


def jemalloc() -> dict[str, str]:
    """The environment variables that preload jemalloc, none where the dynamic linker cannot find it."""
    environment = {"LD_PRELOAD": JEMALLOC}
    # ld.so only warns about what it cannot preload, so a throwaway child tells whether the functions are there.
    tried = subprocess.run(
        [sys.executable, "-c", "import ctypes; ctypes.CDLL(None).mallctl"],
        env=os.environ | environment,
        capture_output=True,
        check=False,
    )
    return environment if tried.returncode == 0 else {}
