"""A process with a worker's table, which does as it is told, line by line."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from child_cgroup import ChildCgroup
from programs import environment

PROGRAM = """
    import dataclasses, json, logging, os, sys, time
    from resource_monitor.guard import AllocationGuard, passed, publish_passed
    from resource_monitor.workers import WorkerTable

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    table = WorkerTable.open(root=sys.argv[1], watch=publish_passed)
    for line in iter(sys.stdin.readline, ""):
        print(json.dumps(eval(line), default=dataclasses.astuple), flush=True)
"""


class Worker:
    """Below ``root``, or inside ``cgroup``."""

    def __init__(self, root: Path | str = "/", cgroup: ChildCgroup | None = None) -> None:
        spawn = subprocess.Popen if cgroup is None else cgroup.spawn
        self.process: subprocess.Popen[str] = spawn(
            [sys.executable, "-c", textwrap.dedent(PROGRAM), str(root)],
            env=environment(None),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def say(self, expression: str) -> None:
        """Have it evaluated; :meth:`hear` tells what came out."""
        assert self.process.stdin is not None
        print(expression, file=self.process.stdin, flush=True)

    def hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.communicate()[1])
        return json.loads(line)

    def does(self, expression: str) -> Any:
        self.say(expression)
        return self.hear()

    def others(self, after: float = 0.0) -> Any:
        """Promised, in flight and workers, as seen ``after`` so many seconds."""
        return tuple(self.does(f"table.others(time.monotonic() + {after})"))[:3]

    def leave(self) -> str:
        """End in order; what was logged."""
        err = self.process.communicate()[1]
        assert self.process.returncode == 0, err
        return err

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
