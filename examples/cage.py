"""The server of the demo: uvicorn with the sample app, under the best memory limit to be had here, restarted at once.

Owns which limit that is: a cgroup of our own, a delegated one from systemd for an ordinary user, or a declared limit.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Self

from child_cgroup import CannotCreate, ChildCgroup

_IN_SCOPE = "RESOURCE_MONITOR_DEMO_IN_SCOPE"
_SCOPE = ("systemd-run", "--user", "--scope", "--quiet", "--property=Delegate=yes", "--")
# A program that ends at once, again and again, is broken; more starts than this in one run help nobody.
_MOST_STARTS = 500


class Cage:
    """Runs ``MODULE:app`` on a free loopback port inside a memory limit of ``limit`` bytes, until left.

    ``kills`` says when the kernel killed it, by :func:`time.monotonic`; ``exits`` counts how often it ended otherwise.
    ``cgroup`` is ``None`` where the limit is only declared.
    """

    def __init__(self, module: str, limit: int, environment: dict[str, str]) -> None:
        self.kills: list[float] = []
        self.exits = 0
        self.cgroup: ChildCgroup | None = None
        declared = {}
        try:
            self.cgroup = ChildCgroup(limit, label="demo")
        except CannotCreate:
            declared = {"RESOURCE_MONITOR_LIMIT": str(limit)}
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._environment = os.environ | environment | declared
        self._argv = [
            *(sys.executable, "-m", "uvicorn", f"{module}:app", "--app-dir", str(Path(__file__).parent)),
            *("--port", str(port), "--log-level", "error", "--no-access-log"),
        ]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in __exit__)
        self._stop = threading.Event()
        self._process = self._spawn()
        self._thread = threading.Thread(target=self._keep_running)
        self._thread.start()

    def log(self) -> str:
        """What the server has said so far."""
        self._log.seek(0)
        return self._log.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        while self._thread.is_alive():  # again, should it be starting one at this moment
            self._process.kill()
            self._thread.join(0.05)
        if self.cgroup:
            self.cgroup.close()
        self._log.close()

    def _spawn(self) -> subprocess.Popen[str]:
        start = self.cgroup.spawn if self.cgroup else partial(subprocess.Popen[str], text=True)
        # In a session of its own, so that Ctrl-C ends the demo and the demo ends the server.
        return start(self._argv, env=self._environment, stdout=self._log, stderr=self._log, start_new_session=True)

    def _keep_running(self) -> None:
        for _ in range(_MOST_STARTS):
            before = self._oom_kills()
            self._process.wait()
            if self._stop.is_set():
                return
            if self._oom_kills() > before:
                self.kills.append(time.monotonic())
            else:
                self.exits += 1
            self._process = self._spawn()

    def _oom_kills(self) -> int:
        return self.cgroup.oom_kills() if self.cgroup else 0


def describe_limit(cage: Cage) -> str:
    """Which limit it got, as the end of a sentence."""
    if cage.cgroup:
        return f"a cgroup v{cage.cgroup.version} of its own ({cage.cgroup.path})"
    return (
        "only declared with RESOURCE_MONITOR_LIMIT: no cgroup can be made here, so that nothing kills the unprotected "
        "server; run as root, under systemd, or with docker compose"
    )


def delegate() -> None:
    """Where no cgroup can be made, run this program again in a systemd scope in which it can; returns otherwise."""
    if os.environ.get(_IN_SCOPE):
        _step_aside()
        return
    try:
        ChildCgroup(None, label="demo").close()
    except CannotCreate:
        if (
            shutil.which(_SCOPE[0])
            and not subprocess.run([*_SCOPE, "true"], capture_output=True, check=False).returncode
        ):
            os.environ[_IN_SCOPE] = "1"
            os.execvp(_SCOPE[0], [*_SCOPE, sys.executable, *sys.argv])


def _step_aside() -> None:
    """Move from the delegated cgroup into a leaf of it: one with processes gives its children no controllers.

    Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint".
    """
    own = Path("/proc/self/cgroup").read_text().splitlines()[-1].split(":", 2)[2]
    scope = Path("/sys/fs/cgroup", own.lstrip("/"))
    with suppress(OSError):  # without it the limit is only declared, and we say so
        leaf = scope / "demo"
        leaf.mkdir()
        (leaf / "cgroup.procs").write_text(str(os.getpid()))
        (scope / "cgroup.subtree_control").write_text("+memory")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
