"""The request's body as the app of a WSGI server reads it: in small pieces, and each only when there is room for it.

Owns the reading, which is as the server's own, and what becomes of a body that nobody reads; ``bodies`` says when there
is room, and when a body ends before its end.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from resource_monitor.errors import MemoryPressure
from resource_monitor.middleware.bodies import POLL, WITHOUT_BODY, Body, BodyTooLarge, content_length
from resource_monitor.middleware.steps import server_runs

# Read at a time, bytes: what a thread holds of a body that nobody has made room for.
PIECE = 1 << 16
# A client that still sends gets a reset in place of the answer when the server closes on unread data (RFC 9112, section
# 9.6), so what is left of a refused body is read and dropped, as far as these go: bytes, and seconds.
_LINGER_BYTES, _LINGER_SECONDS = 64 << 20, 5.0


class Readable(Protocol):
    """What PEP 3333 promises of ``wsgi.input`` and is needed here."""

    def read(self, size: int, /) -> bytes: ...

    def readline(self, size: int, /) -> bytes: ...


class Intake(Protocol):
    """Who is asked before each piece, and told after it: :class:`~resource_monitor.middleware.bodies.Intake`."""

    def may_read(self) -> bool: ...

    def came(self, size: int, *, more: bool) -> None: ...


class Connection(Protocol):
    """What is needed of the socket that gunicorn hands out."""

    def gettimeout(self) -> float | None: ...

    def settimeout(self, value: float | None, /) -> None: ...


def connection_of(environ: Mapping[str, Any]) -> Connection | None:
    """The connection of a request where the server hands it out."""
    return environ.get("gunicorn.socket")


def body_of(environ: Mapping[str, Any]) -> Body:
    """What is known of the body of a request before it is read; one that is not announced is none."""
    if "chunked" in environ.get("HTTP_TRANSFER_ENCODING", "").lower():
        return Body(None)
    length = environ.get("CONTENT_LENGTH")
    # from HTTP/2 on one may come without either; servers that tell where it ends say so
    unframed = not length and environ.get("wsgi.input_terminated") and environ.get("REQUEST_METHOD") not in WITHOUT_BODY
    if unframed and not environ.get("SERVER_PROTOCOL", "HTTP/1.1").startswith("HTTP/1"):
        return Body(None)
    return Body(content_length(length) or 0)


class Limited(io.IOBase):
    """``wsgi.input`` for a request with a body, read as the server's own, ``body``, and with its short reads.

    No more than ``announced`` bytes are read, unless that is ``None``: what follows is the connection's next request.
    ``cut`` is the kind of the error that ended it before its end, or ``None``; after it nothing more is read.
    """

    __slots__ = ("_body", "_left", "cut")

    def __init__(self, body: Readable, announced: int | None) -> None:
        self._body = body
        self._left = sys.maxsize if announced is None else announced
        self.cut: type[MemoryPressure] | type[BodyTooLarge] | None = None

    def readable(self) -> bool:
        return True

    def linger(self, connection: Connection | None) -> None:
        """Read what is left and drop it, within bounds."""
        linger(self._body, self._left, connection)
        self._left = 0

    def _take(self, read: Callable[[int], bytes], size: int) -> bytes:
        """What the server reads at once, of no more than ``size`` bytes."""
        if self.cut is not None:
            raise self.cut("The rest of the request's body was refused, so no more of it can be read.")
        try:
            with server_runs():
                piece = read(size)
        except MemoryError:
            self.cut = MemoryPressure  # what the server had in hand is lost, so nobody knows where the body goes on
            raise
        self._left -= len(piece)
        return piece


class PromisedInput(Limited):
    """For a request that started with all of its ``announced`` bytes promised: nobody is asked any more."""

    __slots__ = ()

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            return self._gather(self._body.read, self._left)
        wanted = min(size, self._left)
        return self._take(self._body.read, wanted) if wanted else b""

    def readline(self, size: int | None = -1, /) -> bytes:
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        return self._gather(self._body.readline, wanted, until=b"\n")

    def _gather(self, read: Callable[[int], bytes], wanted: int, until: bytes | None = None) -> bytes:
        """``wanted`` bytes, of a server that may read short; fewer where the body is over, or a piece ends it."""
        pieces = []
        while wanted and (piece := self._take(read, wanted)):
            pieces.append(piece)
            wanted -= len(piece)
            if until is not None and piece.endswith(until):
                break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Input(Limited):
    """For one that may have to wait for room: each piece is asked ``intake`` for. Reading raises what that does."""

    __slots__ = ("_intake", "_unannounced")

    def __init__(self, body: Readable, announced: int | None, intake: Intake) -> None:
        super().__init__(body, announced)
        self._unannounced = announced is None
        self._intake = intake

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            return self._gather(self._body.read, sys.maxsize, lambda piece, most: False)
        return self._gather(self._body.read, size, lambda piece, most: len(piece) < most)

    def readline(self, size: int | None = -1, /) -> bytes:
        wanted = sys.maxsize if size is None or size < 0 else size
        return self._gather(self._body.readline, wanted, lambda piece, most: piece.endswith(b"\n"), grows=True)

    def _gather(
        self,
        read: Callable[[int], bytes],
        wanted: int,
        ends: Callable[[bytes, int], bool],
        *,
        grows: bool = False,
    ) -> bytes:
        """Piece after piece until ``wanted`` bytes are there, the body is over, or a piece ends it."""
        most = min(wanted, PIECE)
        piece = self._piece(read, most)
        if not piece or len(piece) == wanted or ends(piece, most):
            return piece
        # As large as it will be, where that is known: memory that is not written yet costs nothing, and growing would
        # take a copy in the end. It is written to and handed out in place.
        grows = grows or self._unannounced
        whole = io.BytesIO(b"" if grows else bytes(min(wanted, len(piece) + self._left)))
        while piece:
            whole.write(piece)
            most = min(wanted - whole.tell(), PIECE)
            if most == 0 or ends(piece, most):
                break
            piece = self._piece(read, most)
        whole.truncate()
        return whole.getvalue()

    def _piece(self, read: Callable[[int], bytes], wanted: int) -> bytes:
        most = min(wanted, self._left, PIECE)
        if most == 0:
            return b""
        try:
            while self.cut is None and not self._intake.may_read():
                time.sleep(POLL)
            piece = self._take(read, most)
            self._intake.came(len(piece), more=bool(piece) and self._left > 0)
        except (MemoryPressure, BodyTooLarge) as error:
            self.cut = type(error)
            raise
        return piece


def linger(body: Readable, announced: int | None, connection: Connection | None) -> None:
    """Read a refused body and drop it, within bounds; a client that stopped is not waited for where the server hands
    out its ``connection``."""
    left = _LINGER_BYTES if announced is None else min(announced, _LINGER_BYTES)
    ends = time.monotonic() + _LINGER_SECONDS
    with suppress(Exception), _impatient(connection):  # each server has its own way to say that the client broke off
        while left > 0:
            try:
                piece = body.read(min(left, PIECE))
            except MemoryError:  # gunicorn reads up to 1 MiB ahead
                time.sleep(POLL)
            else:
                left -= len(piece)
                if not piece:
                    return
            if time.monotonic() >= ends:
                return


@contextmanager
def _impatient(connection: Connection | None) -> Iterator[None]:
    """What a read that ran out of memory had in hand is not counted, and would be waited for."""
    if connection is None:
        yield
        return
    before = connection.gettimeout()
    connection.settimeout(_LINGER_SECONDS)
    try:
        yield
    finally:
        connection.settimeout(before)
