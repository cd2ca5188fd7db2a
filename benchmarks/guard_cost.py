"""What the allocation guard costs: loops of allocations with and without it, alternating in one process.

    python -m benchmarks.guard_cost

Each line is the median, over pairs of runs, of the time with the guard divided by the time without it. In a fresh
process each: on glibc and jemalloc, outside of any cgroup of our own and inside one of 256 MB.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from ctypes.util import find_library
from functools import partial
from pathlib import Path

PAIRS = 41
SECONDS = 0.02  # of a run, about
LIMIT = 256_000_000

LOOPS: dict[str, Callable[[], object]] = {
    "1 MB": lambda: b"x" * 1_000_000,
    "1 MB, bytearray(n)": lambda: bytearray(1_000_000),
    "1 MB, bytes(n)": lambda: bytes(1_000_000),
    "8 MB": lambda: b"x" * 8_000_000,
    "10 KB": lambda: b"x" * 10_000,
    "10 KB, bytearray(n)": lambda: bytearray(10_000),
    "10 KB, bytes(n)": lambda: bytes(10_000),
    "600 B": lambda: b"x" * 600,
    "100 B": lambda: b"x" * 100,
    "1000 dicts": lambda: [{"number": n} for n in range(1000)],
}


def measure() -> dict[str, float]:
    """The ratio of each loop, in this process."""
    from resource_monitor import AllocationGuard

    guard = AllocationGuard()
    ratios = {}
    for name, allocate in LOOPS.items():
        count = 1
        while (elapsed := _timed(allocate, count)) < SECONDS / 4:
            count *= 2
        count = max(1, round(count * SECONDS / elapsed))
        pairs = []
        for pair in range(PAIRS):
            times = {}
            for guarded in (pair % 2 == 0, pair % 2 == 1):
                if guarded:
                    guard.install()
                times[guarded] = _timed(allocate, count)
                guard.uninstall()
            pairs.append(times[True] / times[False])
        ratios[name] = statistics.median(pairs)
    return ratios


def _timed(allocate: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        allocate()
    return time.perf_counter() - start


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    from child_cgroup import ChildCgroup

    columns = {}
    for allocator in ("glibc", "jemalloc"):
        library = find_library(allocator)
        if allocator != "glibc" and library is None:
            print(f"{allocator} is not installed.", file=sys.stderr)
            continue
        env = os.environ | ({"LD_PRELOAD": library} if allocator != "glibc" and library else {})
        argv = [sys.executable, "-m", "benchmarks.guard_cost", "--measure"]
        for place in ("no cgroup", "256 MB"):
            with ChildCgroup(LIMIT) if place != "no cgroup" else nullcontext() as cgroup:
                run = cgroup.run if cgroup else partial(subprocess.run, capture_output=True, text=True)
                done = run(argv, env=env)
                if done.returncode:
                    raise SystemExit(f"{allocator}, {place}: {done.stderr}")
            columns[f"{allocator}, {place}"] = json.loads(done.stdout)
    print(f"Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} cpus; with / without\n")
    print(f"{'':22}" + "".join(f"{column:>20}" for column in columns))
    for name in LOOPS:
        print(f"{name:22}" + "".join(f"{ratios[name]:20.3f}" for ratios in columns.values()))


if __name__ == "__main__":
    if "--measure" in sys.argv:
        print(json.dumps(measure()))
    else:
        main()
