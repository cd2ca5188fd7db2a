"""The client: open-loop load over loopback, and what became of every request.

Arrivals are a Poisson process that waits for no answer (a server that is slow gets no less work), each request on a
connection of its own unless the scenario keeps them alive. Sockets are used directly: a refusal that arrives while the
body is still being sent must be read as a careful client would read it, and not be lost to the failed write.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.overload.scenarios import Request, Scenario

_PIECE = 1 << 18
# Kept-alive connections are not used again after this many seconds: uvicorn closes them after 5, and a request sent at
# that very moment would count against the server.
_IDLE = 3.0


@dataclass(slots=True)
class Outcome:
    """What became of a request; times are seconds since the load began.

    ``status`` is 0 when none was read, and then ``error`` says why: ``refused``, ``reset`` or ``timeout``. An answer
    that was cut short has both. ``answered`` is when the status was read.
    """

    kind: str
    started: float
    status: int = 0
    answered: float | None = None
    ended: float = 0.0
    error: str = ""

    @property
    def good(self) -> bool:
        return self.status == 200 and not self.error

    @property
    def shed(self) -> bool:
        return self.status in (413, 503)


@dataclass(slots=True)
class Load:
    """What a run of the load saw: every outcome, and by how many seconds each request was sent too late."""

    outcomes: list[Outcome] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)


async def run(port: int, scenario: Scenario, *, rate: float, seconds: float, seed: int, began: float) -> Load:
    """Send requests for ``seconds`` at ``rate`` per second, in the scenario's waves if it has any, and wait for what
    became of them; ``began`` is time 0."""
    client, load, tasks = _Client(port, began), Load(), set()
    try:
        for at, request in arrivals(scenario, rate, seconds, seed):
            if (early := began + at - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            load.lateness.append(time.perf_counter() - began - at)
            task = asyncio.create_task(client.send(request, load.outcomes))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        while tasks:
            await asyncio.wait(tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        client.close()
    return load


def arrivals(scenario: Scenario, rate: float, seconds: float, seed: int) -> Iterator[tuple[float, Request]]:
    """The requests and when they are due: a Poisson process, interrupted where the scenario has waves."""
    rng = random.Random(seed)
    due = scenario.waves.due if scenario.waves else float
    at, count = 0.0, 0
    while due(at) < seconds and count != scenario.at_most:
        yield due(at), scenario.make(rng)
        at += rng.expovariate(rate)
        count += 1


class _Client:
    def __init__(self, port: int, began: float) -> None:
        self._address = ("127.0.0.1", port)
        self._began = began
        self._loop = asyncio.get_running_loop()
        self._idle: list[tuple[float, socket.socket]] = []

    async def send(self, request: Request, outcomes: list[Outcome]) -> None:
        outcome = Outcome(request.kind, time.perf_counter() - self._began)
        try:
            async with asyncio.timeout(request.timeout):
                await self._exchange(request, outcome)
        except TimeoutError:
            outcome.error = "timeout"
        except ConnectionRefusedError:
            outcome.error = "refused"
        except OSError:
            outcome.error = "reset"
        outcome.ended = time.perf_counter() - self._began
        outcomes.append(outcome)

    def close(self) -> None:
        for _, connection in self._idle:
            connection.close()
        self._idle.clear()

    def _kept_alive(self) -> socket.socket | None:
        """The connection that was used last; when even that one is too old, all are."""
        if self._idle and time.monotonic() - self._idle[-1][0] > _IDLE:
            self.close()
        return self._idle.pop()[1] if self._idle else None

    async def _exchange(self, request: Request, outcome: Outcome) -> None:
        connection = self._kept_alive() if request.keep_alive else None
        try:
            if connection is None:
                connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await self._loop.sock_connect(connection, self._address)
            await self._loop.sock_sendall(connection, _head(request))
            if request.body:
                body = asyncio.create_task(self._send_body(connection, request))
                try:
                    await self._read(connection, request, outcome)
                finally:
                    body.cancel()
                    await asyncio.gather(body, return_exceptions=True)
            elif await self._read(connection, request, outcome):
                self._idle.append((time.monotonic(), connection))
                connection = None
        finally:
            if connection is not None:
                connection.close()

    async def _send_body(self, connection: socket.socket, request: Request) -> None:
        piece = memoryview(bytes(_PIECE))
        for start in range(0, request.body, _PIECE):
            size = min(_PIECE, request.body - start)
            if request.chunked:
                await self._loop.sock_sendall(connection, f"{size:x}\r\n".encode() + piece[:size] + b"\r\n")
            else:
                await self._loop.sock_sendall(connection, piece[:size])
        if request.chunked:
            await self._loop.sock_sendall(connection, b"0\r\n\r\n")

    async def _read(self, connection: socket.socket, request: Request, outcome: Outcome) -> bool:
        """Read the response to its end; whether the connection can be used again."""
        head = b""
        while b"\r\n\r\n" not in head:
            head += await self._receive(connection)
        outcome.answered = time.perf_counter() - self._began
        outcome.status = int(head[9:12])
        head, _, rest = head.partition(b"\r\n\r\n")
        headers = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
        if b"content-length" in headers:
            left = int(headers[b"content-length"]) - len(rest)
            while left > 0:
                left -= len(await self._receive(connection))
        else:
            while not rest.endswith(b"0\r\n\r\n"):
                rest = rest[-5:] + await self._receive(connection)
        return request.keep_alive and headers.get(b"connection") != b"close"

    async def _receive(self, connection: socket.socket) -> bytes:
        data = await self._loop.sock_recv(connection, 65536)
        if not data:
            raise ConnectionResetError("the server closed the connection before the end of the response")
        return data


def _head(request: Request) -> bytes:
    lines = [f"{'POST' if request.body else 'GET'} {request.path} HTTP/1.1", "Host: arena"]
    if request.body:
        lines.append("Transfer-Encoding: chunked" if request.chunked else f"Content-Length: {request.body}")
    if not request.keep_alive:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode()
