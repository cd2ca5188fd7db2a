"""Ten minutes of mixed work at twice what fits, in one process: does it live, and does it stay as it was?

``python -m benchmarks.overload.soak [--minutes N] [--rate R] [--strategy NAME]``: each minute is 48 s of ``mixed``,
``race`` and ``objects`` in equal parts and 12 s of rest, at the end of which the server gives back what nobody needs,
and memory and descriptors are counted. Status 0 when the process at the end is the one of the beginning and neither
descriptors nor what is held of memory grew after the first minute. Held is idle memory without pymalloc's unused pools,
which one small object in their arena keeps, another one each time: they come and go by tens of megabytes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.overload import load, strategies
from benchmarks.overload.scenarios import SCENARIOS, Request, Scenario
from benchmarks.overload.supervisor import Server
from examples.child_cgroup import ChildCgroup

PARTS = ("mixed", "race", "objects")
LOADED, RESTING = 48.0, 12.0
# What idle memory and descriptors may differ by without having grown: allocator and garbage collector are never at the
# same point twice, for which the least of the last three minutes counts, and one accepted connection may still linger.
MEMORY_SLACK, DESCRIPTOR_SLACK = 4 * 10**6, 2


@dataclass(frozen=True, slots=True)
class Minute:
    """One minute: answers a second, and what the process had at its end; bytes."""

    pid: int
    good_per_s: float
    shed_per_s: float
    failed: int
    descriptors: int
    memory: int
    held: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--rate", type=float, default=300.0, help="requests/s (default: %(default)s)")
    parser.add_argument("--strategy", default="ours")
    options = parser.parse_args()
    print("minute   pid      good/s  shed/s  failed  descriptors  idle memory     held")
    minutes, kills = asyncio.run(soak(options.strategy, options.rate, options.minutes, show))
    same = len({minute.pid for minute in minutes}) == 1 and kills == 0
    first, last = minutes[0], minutes[-3:]
    descriptors, held = min(minute.descriptors for minute in last), min(minute.held for minute in last)
    steady = descriptors <= first.descriptors + DESCRIPTOR_SLACK and held <= first.held + MEMORY_SLACK
    print(f"{'the same process' if same else 'not the same process'}, {kills} kills, {'steady' if steady else 'grown'}")
    return 0 if same and steady else 1


def show(number: int, minute: Minute) -> None:
    print(
        f"{number:6d}   {minute.pid:<7d} {minute.good_per_s:7.1f} {minute.shed_per_s:7.1f} {minute.failed:7d} "
        f"{minute.descriptors:12d} {minute.memory / 1e6:9.1f} MB {minute.held / 1e6:8.1f} MB",
        flush=True,
    )


async def soak(name: str, rate: float, count: int, tell: Callable[[int, Minute], None]) -> tuple[list[Minute], int]:
    """Run ``count`` minutes; what each was like, and how often the kernel killed."""
    scenario = Scenario("soak", "mixed, race and objects in equal parts", _any)
    minutes = []
    with TemporaryDirectory(prefix="arena-soak-") as scratch, ChildCgroup(scenario.limit, label="soak") as cgroup:
        files = Path(scratch, "files")
        files.mkdir()
        server = Server(
            strategies.find(name),
            scenario,
            cgroup,
            tally=Path(scratch),
            files=files,
            log=Path(scratch, "log"),
        )
        try:
            await server.start()
            watcher = asyncio.create_task(server.watch())
            for number in range(1, count + 1):
                began = time.perf_counter()
                seen = await load.run(server.port, scenario, rate=rate, seconds=LOADED, seed=number, began=began)
                await asyncio.sleep(RESTING)
                with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/rest") as answer:
                    unused = int(answer.read())
                usage = cgroup.usage()
                good = sum(outcome.good for outcome in seen.outcomes)
                shed = sum(outcome.shed for outcome in seen.outcomes)
                pid = int((cgroup.path / "cgroup.procs").read_text().split()[0])
                minutes.append(
                    Minute(
                        pid,
                        good / LOADED,
                        shed / LOADED,
                        len(seen.outcomes) - good - shed,
                        len(os.listdir(f"/proc/{pid}/fd")),
                        usage,
                        usage - unused,
                    )
                )
                tell(number, minutes[-1])
            watcher.cancel()
        finally:
            server.stop()
        return minutes, cgroup.oom_kills()


def _any(rng: random.Random) -> Request:
    return SCENARIOS[rng.choice(PARTS)].make(rng)


if __name__ == "__main__":
    raise SystemExit(main())
