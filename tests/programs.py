"""Runs Python programs and servers inside child cgroups, and speaks to the servers; shared by ``kernel`` and
``integration``. Timeouts are generous: they only end what hangs, also on an emulated machine."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes.util
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from child_cgroup import ChildCgroup

MakeCgroup = Callable[..., ChildCgroup]
"""The ``child_cgroup`` fixture: a limit in bytes or ``None``, and the other arguments of :class:`ChildCgroup`."""

EXAMPLES = Path(__file__).parent.parent / "examples"
TIMEOUT = 180.0


def preloaded(library: str, **more: str) -> dict[str, str]:
    """An environment that preloads an allocator such as ``jemalloc``; skips where the machine lacks it."""
    found = ctypes.util.find_library(library)
    if found is None:
        pytest.skip(f"{library} is not installed")
    return {"LD_PRELOAD": found, **more}


def environment(changes: dict[str, str] | None) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", "PYTHONMALLOC")}
    return {**clean, "PYTHONUNBUFFERED": "1", **(changes or {})}


def start_python(
    cgroup: ChildCgroup, program: str, *arguments: object, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start ``program`` (source text) inside ``cgroup`` with pipes to speak to it by lines."""
    return cgroup.spawn(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        env=environment(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_python(cgroup: ChildCgroup, program: str, *arguments: object, env: dict[str, str] | None = None) -> Any:
    """Run ``program`` inside ``cgroup`` and return what it printed, read as JSON; it must end well."""
    with start_python(cgroup, program, *arguments, env=env) as process:
        try:
            out, err = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, f"exit {process.returncode}, {cgroup.oom_kills()} oom kills\n{err}"
    assert cgroup.oom_kills() == 0
    return json.loads(out)


class Server:
    """A running server: its process, its port, and what it has logged so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log: list[str] = []
        self.port = 0
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._ready.wait(TIMEOUT)
        assert self.port, "".join(self.log)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if match := re.search(r"(?:[Rr]unning on|Listening at:) https?://127\.0\.0\.1:(\d+)", line):
                self.port = int(match[1])
                self._ready.set()
        self._ready.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def serve(cgroup: ChildCgroup, *argv: str, cwd: Path, env: dict[str, str] | None = None) -> Iterator[Server]:
    """Run ``python -m ARGV``, a server that logs where it listens, inside ``cgroup`` until the block ends."""
    process = cgroup.spawn(
        [sys.executable, "-m", *argv],
        env=environment(env),
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Server(process)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stderr is not None
        process.stderr.close()


def uvicorn(app: str) -> tuple[str, ...]:
    return ("uvicorn", app, "--host", "127.0.0.1", "--port", "0", "--no-access-log", "--timeout-graceful-shutdown", "1")


def burst(port: int, path: str, requests: int) -> Counter[int | str]:
    """How many of ``requests`` made at the same time got which status; ``"lost"`` without a whole answer."""

    async def one() -> int | str:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n".encode())
                answer = await reader.read()
            finally:
                writer.close()
        except OSError:
            return "lost"
        return int(answer.split()[1]) if answer else "lost"

    async def all_() -> Counter[int | str]:
        return Counter(await asyncio.gather(*(one() for _ in range(requests))))

    return asyncio.run(asyncio.wait_for(all_(), TIMEOUT))
