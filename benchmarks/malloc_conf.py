"""What jemalloc's settings do to a Python service in a small cgroup: peak and resting usage, time, per MALLOC_CONF.

``PYTHONPATH=examples python -m benchmarks.malloc_conf`` prints a table; the settings of ``resource-monitor run`` come
from it.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from ctypes.util import find_library

from child_cgroup import ChildCgroup

LIMIT = 256 << 20
ROUNDS = 5
SETTINGS = (
    "",
    "thp:never",
    "muzzy_decay_ms:0",
    "dirty_decay_ms:1000",
    "dirty_decay_ms:0,muzzy_decay_ms:0",
    "background_thread:true",
    "narenas:2",
    "thp:never,narenas:2",
)

# Requests on four threads: up to 8 MB in one piece and 1-2 MB of small objects, then a moment without any.
WORKLOAD = """
import json, random, sys, threading, time
usage = open(sys.argv[1])
def serve(seed):
    choose = random.Random(seed)
    for _ in range(60):
        body = bytearray(choose.randrange(1 << 20, 8 << 20))
        rows = [{"id": i, "name": str(i) * 3} for i in range(choose.randrange(2000, 6000))]
        time.sleep(0.002)
        del body, rows
begin = time.process_time()
threads = [threading.Thread(target=serve, args=(seed,)) for seed in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
cpu = time.process_time() - begin
time.sleep(0.5)
print(json.dumps([cpu, int(usage.read())]))
"""


def measure(settings: str) -> tuple[float, float, float]:
    """CPU seconds, peak and resting usage in MB of one run."""
    with ChildCgroup(LIMIT, label="conf") as cgroup:
        name = "memory.current" if cgroup.version == 2 else "memory.usage_in_bytes"
        environment = os.environ | {"LD_PRELOAD": find_library("jemalloc") or "", "MALLOC_CONF": settings}
        ran = cgroup.run([sys.executable, "-c", WORKLOAD, str(cgroup.path / name)], env=environment)
        cpu, resting = json.loads(ran.stdout)
        return cpu, cgroup.peak() / 1e6, resting / 1e6


def main() -> None:
    print(f"{'MALLOC_CONF':36} {'CPU s':>7} {'peak MB':>9} {'resting MB':>11}")
    for settings in SETTINGS:
        runs = [measure(settings) for _ in range(ROUNDS)]
        cpu, peak, resting = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{settings or '(none)':36} {cpu:7.2f} {peak:9.1f} {resting:11.1f}", flush=True)


if __name__ == "__main__":
    main()
