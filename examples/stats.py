"""What both sample apps answer at /stats: the reading, the middleware's counts, and which process this is."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import Any

from resource_monitor import ProbeError, default_monitor
from resource_monitor.middleware import Statistics

STARTED = time.time()
"""When this process started, as seconds since the epoch: in a container every start has the same pid."""


def stats(middleware: Statistics | None) -> dict[str, Any]:
    """Ready for JSON; ``memory`` is ``None`` while it cannot be read, ``middleware`` where there is none."""
    monitor = default_monitor()
    try:
        memory = asdict(monitor.read())
    except ProbeError:
        memory = None
    return {
        "pid": os.getpid(),
        "started": STARTED,
        "allocator": monitor.allocator.name,
        "memory": memory,
        "middleware": asdict(middleware) if middleware else None,
    }
