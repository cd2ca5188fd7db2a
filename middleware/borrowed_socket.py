"""The socket of a descriptor that someone else owns: to ask and to tell it what only sockets can be."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def borrowed_socket(descriptor: int) -> Iterator[socket.socket]:
    """It stays open. Raises :class:`OSError` where there is none."""
    # the family is told, for it would be asked for; it makes no difference to what is connected or listens already
    borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=descriptor)
    try:
        yield borrowed
    finally:
        borrowed.detach()
