"""A way into each process of a server beside HTTP: it tells of its requests through a Unix socket, and lets go of those
that it holds. Both ends are here: :class:`Control` in the server's process, :class:`Worker` in the tests'.

A socket is no request, so that asking changes nothing of what is asked about, and each of several workers can be asked.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from resource_monitor.middleware import Statistics

DIRECTORY = "SERVER_MATRIX_CONTROL"
"""The environment variable that names the directory of the sockets; each is called by its process's id."""


class Control:
    """Answers from a thread, which gevent makes one of its own kind, so that a busy or waiting worker answers too."""

    def __init__(self, statistics: Callable[[], Statistics]) -> None:
        self._statistics = statistics
        self._held = self._releases = 0
        self._listener = socket.socket(socket.AF_UNIX)
        path = Path(os.environ[DIRECTORY], str(os.getpid()))
        self._listener.bind(str(path.with_suffix(".new")))
        self._listener.listen()
        path.with_suffix(".new").rename(path)  # whoever finds it can connect to it
        threading.Thread(target=self._serve, daemon=True).start()

    @contextmanager
    def held(self) -> Iterator[Callable[[], bool]]:
        """For a request that is to be in flight; gives what says whether it still is to be."""
        releases = self._releases
        self._held += 1
        try:
            yield lambda: self._releases == releases
        finally:
            self._held -= 1

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection, suppress(ConnectionError):
                command = connection.recv(1)
                if command == b"r":
                    self._releases += 1
                elif command == b"g":
                    gc.collect()
                found = self._statistics()
                answer = {
                    "held": self._held,
                    "in_flight": found.in_flight,
                    "admitted": found.admitted,
                    "shed": found.shed,
                }
                connection.sendall(json.dumps(answer).encode())


class Worker:
    """The process of a server that listens at ``path``; raises :exc:`ConnectionError` once that has ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.pid = int(path.name)

    def counts(self) -> dict[str, int]:
        """Requests: ``held`` by the app, ``in_flight``, and ``admitted`` and ``shed`` since the start."""
        return self._ask(b"c")

    def release(self) -> None:
        """Let go of what is held; a server that was only waiting for that may end before it has answered here."""
        self._ask(b"r")

    def collect_garbage(self) -> None:
        """Let go of what is held by nothing but cycles: the collector would come for it one day."""
        self._ask(b"g")

    def _ask(self, command: bytes) -> dict[str, int]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._path))
            connection.sendall(command)
            with connection.makefile() as answer:
                text = answer.read()
        if not text:
            raise ConnectionResetError(f"process {self.pid} ended before it answered")
        found: dict[str, int] = json.loads(text)
        return found
