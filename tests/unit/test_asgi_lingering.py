"""Closing a connection such that its client reads the answer first, over real transports of both event loops."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from resource_monitor.middleware import asgi_lingering
from resource_monitor.middleware.asgi_lingering import Lingering, lingering_of

ANSWER = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
MIB = 1 << 20

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    return lambda main: request.param(main())


class Server(asyncio.Protocol):
    """What a server knows of one connection, and of what came over it through the event loop."""

    transport: Any
    came = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.came += len(data)

    async def receive(self) -> dict[str, Any]:
        """As uvicorn's, bound to what knows the connection."""
        return {}


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Server, Lingering, socket.socket]]:
    """A connection that has said so much that the server has begun to answer, and the client's end of it."""
    loop, server = asyncio.get_running_loop(), Server()
    listener = await loop.create_server(lambda: server, "127.0.0.1", 0)
    try:
        with socket.create_connection(listener.sockets[0].getsockname(), 60) as client:
            client.sendall(b"POST")
            while not server.came:
                await asyncio.sleep(0)
            lingering = lingering_of(server.receive)
            assert lingering is not None
            yield server, lingering, client
    finally:
        server.transport.close()
        listener.close()


async def send(client: socket.socket, size: int) -> None:
    await asyncio.to_thread(client.sendall, b"x" * size)


def queued(connection: Any, which: int) -> int:
    """Bytes that have come over a connection and were not read, or that went out and did not come."""
    return int.from_bytes(fcntl.ioctl(connection.fileno(), which, bytes(4)), sys.byteorder)


async def read_all(client: socket.socket) -> bytes:
    with client.makefile("rb") as answer:
        return await asyncio.to_thread(answer.read)


def test_a_client_that_sends_all_before_it_reads_finds_the_answer_and_the_end(run: Run) -> None:
    async def main() -> None:
        async with connected() as (server, lingering, client):
            server.transport.write(ANSWER)
            closed = asyncio.create_task(lingering.until_closed())
            await asyncio.sleep(0)  # it begins
            await send(client, 30 * MIB)
            assert await read_all(client) == ANSWER
            assert not closed.done()
            client.close()
            await closed
            assert server.came == len(b"POST")
            assert not server.transport.is_closing()

    run(main)


def test_what_is_dropped_is_not_copied(run: Run) -> None:
    async def main() -> None:
        async with connected() as (_, lingering, client):
            closed = asyncio.create_task(lingering.until_closed())
            await send(client, 20 * MIB)
            client.close()
            await closed
            assert not any(asgi_lingering._NOWHERE)

    run(main)


def test_a_client_that_closed_its_side_reads_on(run: Run) -> None:
    async def main() -> None:
        async with connected() as (server, lingering, client):
            await send(client, MIB)
            client.shutdown(socket.SHUT_WR)
            server.transport.write(ANSWER)
            await lingering.until_closed()
            server.transport.close()
            assert await read_all(client) == ANSWER

    run(main)


def test_an_answer_that_is_still_on_its_way_is_not_cut_short(run: Run) -> None:
    async def main() -> None:
        async with connected() as (server, lingering, client):
            large = ANSWER + bytes(16 * MIB)
            server.transport.write(large)
            closed = asyncio.create_task(lingering.until_closed())
            await asyncio.sleep(3 * asgi_lingering._LOOK)
            assert server.transport.get_write_buffer_size()
            assert await read_all(client) == large
            client.close()
            await closed

    run(main)


def test_a_client_that_resets_the_connection_ends_it(run: Run) -> None:
    async def main() -> None:
        async with connected() as (_, lingering, client):
            closed = asyncio.create_task(lingering.until_closed())
            await asyncio.sleep(0)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            await closed

    run(main)


@pytest.mark.parametrize("early", [True, False])
def test_a_connection_that_the_server_closes_is_left_to_it(run: Run, early: bool) -> None:
    async def main() -> None:
        async with connected() as (server, lingering, client):
            if early:
                server.transport.close()
            closed = asyncio.create_task(lingering.until_closed())
            await asyncio.sleep(0)
            server.transport.close()
            await closed
            assert await read_all(client) == b""

    run(main)


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Either bound is lifted unless a test sets it."""
    monkeypatch.setattr(asgi_lingering, "BYTES", 1 << 60)
    monkeypatch.setattr(asgi_lingering, "SECONDS", 3600.0)
    return monkeypatch


def test_a_client_that_does_not_stop_is_left_after_so_many_bytes(run: Run, endless: pytest.MonkeyPatch) -> None:
    endless.setattr(asgi_lingering, "BYTES", 20 * MIB)

    async def main() -> None:
        async with connected() as (server, lingering, client):
            sending = asyncio.create_task(send(client, 80 * MIB))
            await lingering.until_closed()
            assert not sending.done()
            server.transport.close()
            with pytest.raises(ConnectionError):
                await sending

    run(main)


def test_between_looks_the_loop_goes_on_however_fast_a_client_sends(run: Run, endless: pytest.MonkeyPatch) -> None:
    endless.setattr(asgi_lingering, "BYTES", 1)
    endless.setattr(asgi_lingering, "_AT_ONCE", 1)

    async def main() -> None:
        async with connected() as (server, lingering, client):
            server.transport.pause_reading()
            await send(client, 2 * MIB)
            await lingering.until_closed()
            assert (
                queued(server.transport.get_extra_info("socket"), termios.FIONREAD) + queued(client, termios.TIOCOUTQ)
                >= MIB
            )

    run(main)


def test_a_client_that_neither_sends_nor_closes_is_left_after_a_time(run: Run, endless: pytest.MonkeyPatch) -> None:
    endless.setattr(asgi_lingering, "SECONDS", 0.1)

    async def main() -> None:
        async with connected() as (_, lingering, client):
            await lingering.until_closed()
            assert await read_all(client) == b""

    run(main)


def test_connections_that_cannot_be_reached_are_left_to_the_server(tmp_path: Path) -> None:
    async def receive() -> dict[str, Any]:
        return {}

    class Other(Server):
        transport = "none"

    async def main() -> None:
        assert lingering_of(receive) is None
        assert lingering_of(Other().receive) is None
        server = Server()
        listener = await asyncio.get_running_loop().create_unix_server(lambda: server, tmp_path / "socket")
        _, writer = await asyncio.open_unix_connection(tmp_path / "socket")
        while not hasattr(server, "transport"):
            await asyncio.sleep(0)
        assert lingering_of(server.receive) is None
        writer.close()
        listener.close()

    asyncio.run(main())
