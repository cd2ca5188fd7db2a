"""One run: a fresh cgroup, a server in it, the load from outside, and the row that comes of it.

Whatever happens, also on Ctrl-C, no process and no cgroup is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.overload import load, tally
from benchmarks.overload.results import Row, summarise
from benchmarks.overload.scenarios import Scenario
from benchmarks.overload.strategies import Strategy
from benchmarks.overload.supervisor import Server
from examples.child_cgroup import ChildCgroup


async def run(
    strategy: Strategy, scenario: Scenario, *, rate: float, seconds: float, seed: int, files: Path, logs: Path
) -> Row:
    """Run it. Raises :class:`~benchmarks.overload.supervisor.CannotStart`."""
    if scenario.prepare:
        scenario.prepare(files)
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{strategy.name.replace(':', '-')}-{scenario.name}-{seed}.log"
    log.write_bytes(b"")
    with TemporaryDirectory(prefix="arena-tally-") as counts, ChildCgroup(scenario.limit, label="arena") as cgroup:
        server = Server(strategy, scenario, cgroup, tally=Path(counts), files=files, log=log)
        watcher = None
        try:
            await server.start()
            base = cgroup.usage()
            watcher = asyncio.create_task(server.watch())
            began = time.perf_counter()
            seen, late_admitted = await asyncio.gather(
                load.run(server.port, scenario, rate=rate, seconds=seconds, seed=seed, began=began),
                tally.started_between(Path(counts), began + seconds / 2, began + seconds),
            )
        finally:
            if watcher:
                watcher.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watcher
            server.stop()
        return summarise(
            seen,
            strategy=strategy.name,
            scenario=scenario.name,
            seed=seed,
            rate=rate,
            seconds=seconds,
            waves=scenario.waves,
            limit_concurrency=strategy.limit_concurrency,
            exits=[(at - began, code) for at, code in server.exits],
            kill_times=[at - began for at in server.kills],
            oom_kills=cgroup.oom_kills(),
            tally=tally.read(Path(counts)),
            late_admitted=late_admitted,
            base_bytes=base,
            peak_bytes=cgroup.peak(),
            limit_bytes=scenario.limit,
        )
