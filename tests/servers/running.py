"""A server of the matrix as it runs: its processes, what they hold, and clients for it.

No cgroup is needed, since what is to be refused is refused by what it is known to take.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
from control import DIRECTORY, Worker
from kinds import Kind
from programs import environment

HERE = Path(__file__).parent


class RunningServer:
    """All clients close their connections before :meth:`settle` is called."""

    def __init__(self, kind: Kind, directory: Path) -> None:
        self.kind = kind
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = directory / "log"
        self._sockets = directory / "control"
        self._sockets.mkdir()
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *(argument.format(port=self.port) for argument in kind.argv)],
                env=environment({DIRECTORY: str(self._sockets)}),
                cwd=HERE,
                stdout=log,
                stderr=log,
                text=True,
            )
        self._read = 0
        self.workers: list[Worker] = []
        self._descriptors: dict[int, int] = {}

    def log(self) -> str:
        """What was logged since this was asked the last time."""
        text = self._log.read_text()
        new, self._read = text[self._read :], len(text)
        return new

    def client(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.url, http1=not self.kind.http2, http2=self.kind.http2, timeout=60, trust_env=False
        )

    def counts(self) -> Counter[str]:
        """Of all workers together, see :meth:`Worker.counts`."""
        return sum((Counter(worker.counts()) for worker in self.workers), Counter[str]())

    def release(self) -> None:
        """Let go of what the app holds, in the workers that are still there."""
        for worker in self.workers:
            with suppress(ConnectionError):
                worker.release()

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(
                    f"{self.kind.name}: never {what}; {self.process.returncode=}\n{self.log()[-4000:]}"
                )
            time.sleep(0.01)

    def begin(self) -> None:
        """Return when every worker has answered a request, so that it has opened what it keeps open."""
        self.wait_until(lambda: len(list(self._sockets.glob("*[0-9]"))) == self.kind.workers, "started")
        self.workers = [Worker(path) for path in self._sockets.iterdir()]
        self.wait_until(self._accepts, "listening")
        while not all(worker.counts()["admitted"] for worker in self.workers):
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(self._get, range(8 * self.kind.workers)))
        processes = [psutil.Process(pid) for pid in {self.process.pid, *(worker.pid for worker in self.workers)}]
        self.wait_until(lambda: not any(_connections(process) for process in processes), "without connections")
        self._descriptors = {process.pid: process.num_fds() for process in processes}

    def settle(self) -> None:
        """Return when nothing is in flight and the descriptors are as many as at first; fails when that never comes."""
        self.wait_until(lambda: not self.counts()["in_flight"], "without requests in flight")
        self.wait_until(lambda: not self._more_descriptors(), "without more descriptors than at first")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        if self.process.poll() is None:
            self.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _get(self, _: int) -> None:
        with self.client() as client:
            client.get("/")

    def _accepts(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except ConnectionRefusedError:
            return False
        return True

    def _more_descriptors(self) -> bool:
        for worker in self.workers:
            worker.collect_garbage()
        return any(psutil.Process(pid).num_fds() > before for pid, before in self._descriptors.items())


@contextmanager
def running(kind: Kind, directory: Path) -> Iterator[RunningServer]:
    server = RunningServer(kind, directory)
    try:
        server.begin()
        yield server
    finally:
        server.end()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _connections(process: psutil.Process) -> bool:
    return any(connection.status != psutil.CONN_LISTEN for connection in process.net_connections("tcp"))
