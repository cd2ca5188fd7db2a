"""How many connections wait to be accepted."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from resource_monitor.middleware.accept_queue import AcceptQueue

_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def listening(stack: ExitStack, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    return stack.enter_context(socket.create_server((_LOOPBACK[family], 0), family=family))


def connect(stack: ExitStack, server: socket.socket, times: int = 1) -> None:
    for _ in range(times):
        stack.enter_context(socket.create_connection(server.getsockname()[:2]))


def test_counts_those_that_wait_at_every_listening_socket(stack: ExitStack) -> None:
    one, other = listening(stack), listening(stack, socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET)
    queue = AcceptQueue()
    assert queue.length() == 0
    connect(stack, one, 3)
    connect(stack, other, 2)
    assert queue.length() == 5
    stack.enter_context(one.accept()[0])
    assert queue.length() == 4


def test_what_else_is_open_does_not_count(stack: ExitStack) -> None:
    with tempfile.TemporaryDirectory() as directory:
        local = stack.enter_context(socket.socket(socket.AF_UNIX))
        local.bind(str(Path(directory) / "socket"))
        local.listen()
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(local.getsockname())
        stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).bind(("localhost", 0))
        assert AcceptQueue().length() == 0


def test_a_socket_that_is_closed_is_let_go_of_and_was_never_held(stack: ExitStack) -> None:
    server = listening(stack)
    queue = AcceptQueue()
    connect(stack, server)
    number, address = server.fileno(), server.getsockname()
    server.close()
    assert queue.length() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    again = listening(stack)  # what has its number now is another socket
    if again.fileno() != number:
        os.dup2(again.fileno(), number)
        stack.callback(os.close, number)
    connect(stack, again)
    assert queue.length() == 0


def test_asking_closes_nothing(stack: ExitStack) -> None:
    server = listening(stack)
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(10):
        AcceptQueue().length()
    assert set(os.listdir("/proc/self/fd")) == before
    connect(stack, server)
    server.accept()[0].close()
