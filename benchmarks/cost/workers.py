"""Processes of their own that measure and print what they found as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from examples.child_cgroup import ChildCgroup


def run_worker(
    module: str,
    *arguments: str,
    cgroup: ChildCgroup | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> Any:
    """What ``python -m module arguments`` printed, in ``cgroup`` if one is given. Raises ``RuntimeError`` when it
    failed, with what it wrote."""
    argv = [sys.executable, "-m", module, *arguments]
    # RESOURCE_MONITOR_LIMIT and the like would be part of what is measured
    env = {name: value for name, value in os.environ.items() if not name.startswith("RESOURCE_MONITOR_")}
    env |= environment or {}
    if cgroup is not None:
        done = cgroup.run(argv, env=env, timeout=timeout)
    else:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)} failed with status {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)
