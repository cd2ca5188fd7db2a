"""The server's process: started in a cgroup of its own, started again at once when it dies, and every death counted.

As a container runtime does, a restart first ends whatever the dead server left behind. What the server is, is the
business of ``strategies`` and ``server``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.overload.scenarios import Scenario
from benchmarks.overload.strategies import Strategy
from examples.child_cgroup import ChildCgroup

TOP = Path(__file__).resolve().parents[2]
NODE = Path(__file__).with_name("node")
_START_TIMEOUT = 20.0
_POLL = 0.01


class CannotStart(Exception):
    """The server never answered; the text ends with what it wrote."""


class Server:
    """One server in ``cgroup``.

    ``exits`` are (``perf_counter`` seconds, return code) of every end not asked for. ``kills`` are the times at which
    the kernel killed something in the cgroup, which may be a worker that the server replaces by itself.
    """

    def __init__(
        self,
        strategy: Strategy,
        scenario: Scenario,
        cgroup: ChildCgroup,
        *,
        tally: Path,
        files: Path,
        log: Path,
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.exits: list[tuple[float, int]] = []
        self.kills: list[float] = []
        self._cgroup = cgroup
        self._log = log
        self._argv = self._node_argv() if strategy.node else self._python_argv(strategy, scenario)
        self._environment = os.environ | {
            "ARENA_STRATEGY": strategy.name,
            "ARENA_SCENARIO": scenario.name,
            "ARENA_TALLY": str(tally),
            "ARENA_FILES": str(files),
            "ARENA_LIMIT": str(scenario.limit),
            "LD_PRELOAD": strategy.preload,
            **strategy.environment,
        }
        if strategy.limit_concurrency is not None:
            self._environment["ARENA_LIMIT_CONCURRENCY"] = str(strategy.limit_concurrency)

    async def start(self) -> None:
        """Start it and wait until it answers. Raises :class:`CannotStart`."""
        self._spawn()
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline and self._process.poll() is None:
            status = await self._status()
            if status == 200:
                return
            if status:
                break
            await asyncio.sleep(0.02)
        tail = self._log.read_text(errors="replace")[-2000:]
        raise CannotStart(f"{' '.join(self._argv)} did not come up; it wrote:\n{tail}")

    async def watch(self) -> None:
        """Restart it whenever it dies, until cancelled; a watcher that fails shows when it is awaited."""
        while True:
            self.kills += [time.perf_counter()] * (self._cgroup.oom_kills() - len(self.kills))
            code = self._process.poll()
            if code is not None:
                self.exits.append((time.perf_counter(), code))
                self._clear()
                self._spawn()
            await asyncio.sleep(_POLL)

    def stop(self) -> None:
        """End it; safe to call when it never started."""
        if hasattr(self, "_process"):
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
        self._clear()

    def _spawn(self) -> None:
        with self._log.open("ab") as log:
            self._process = self._cgroup.spawn(
                self._argv, env=self._environment, cwd=TOP, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _clear(self) -> None:
        for pid in (self._cgroup.path / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    async def _status(self) -> int:
        """The status of the liveness path, 0 while nothing answers."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(b"GET /livez HTTP/1.1\r\nHost: arena\r\nConnection: close\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), 2)
            writer.close()
        except (OSError, TimeoutError):
            return 0
        return int(answer[9:12] or 0)

    def _python_argv(self, strategy: Strategy, scenario: Scenario) -> list[str]:
        if scenario.forked:
            argv = [sys.executable, "-m", "gunicorn", "--config", "python:benchmarks.overload.forked"]
            argv += ["--bind", f"127.0.0.1:{self.port}", "--workers", str(scenario.workers)]
            return [*argv, "benchmarks.overload.server:app"]
        argv = [sys.executable, "-m", "uvicorn", "benchmarks.overload.server:app", "--port", str(self.port)]
        argv += ["--backlog", "4096", "--no-access-log", "--log-level", "error"]
        if scenario.workers > 1:
            argv += ["--workers", str(scenario.workers)]
        if strategy.limit_concurrency is not None:
            argv += ["--limit-concurrency", str(strategy.limit_concurrency)]
        return argv

    def _node_argv(self) -> list[str]:
        if not (NODE / "node_modules").is_dir():
            install = ["npm", "install", "--silent", "--no-audit", "--no-fund"]
            done = subprocess.run(install, cwd=NODE, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise CannotStart(f"{' '.join(install)} failed in {NODE}:\n{done.stdout}{done.stderr}")
        return ["node", str(NODE / "server.js"), str(self.port)]
