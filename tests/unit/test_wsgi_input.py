"""Reading a body in pieces is no different from reading it at once."""

import io
import itertools
import socket
import sys
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resource_monitor.errors import MemoryPressure
from resource_monitor.guard import IN_APP, IN_SERVER, place
from resource_monitor.middleware import wsgi_input
from resource_monitor.middleware.bodies import BodyTooLarge
from resource_monitor.middleware.steps import app_runs
from resource_monitor.middleware.wsgi_input import PIECE, Input, Limited, PromisedInput, body_of, linger


class Room:
    """Says whether there is room, and remembers when it was asked and told, and how much the server had given then."""

    def __init__(self, answers: Iterable[bool] = itertools.repeat(True)) -> None:
        self.answers = iter(answers)
        self.log: list[tuple[str, int]] = []
        self.inner = io.BytesIO()

    def may_read(self) -> bool:
        self.log.append(("asked", self.inner.tell()))
        return next(self.answers)

    def came(self, size: int, *, more: bool) -> None:
        self.log.append((f"came {size}" if more else f"came {size}, all", self.inner.tell()))

    def input(self, data: bytes, announced: int | None) -> Input:
        self.inner = io.BytesIO(data)
        return Input(self.inner, announced, self)


def bounded(data: bytes, announced: int | None = None) -> Input:
    return Room().input(data, announced)


class Raw:
    """A server's input that hands out what happens to be there: at most ``at_once`` bytes."""

    def __init__(self, data: bytes, at_once: int) -> None:
        self._data = io.BytesIO(data)
        self._at_once = at_once

    def read(self, size: int) -> bytes:
        return self._data.read(min(size, self._at_once))

    def readline(self, size: int) -> bytes:
        return self._data.readline(min(size, self._at_once))


SIZES = st.one_of(st.none(), st.integers(-1, 40))
STEPS = st.lists(st.tuples(st.sampled_from(["read", "readline", "readlines", "next"]), SIZES), max_size=12)
BODIES = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b"longer than a piece"]), max_size=12).map(b"".join)


def step(body: Any, name: str, size: int | None) -> object:
    if name == "next":
        return next(iter(body), None)
    if name == "readlines":
        return body.readlines()
    return getattr(body, name)(size)


@settings(max_examples=500, deadline=None)
@given(data=BODIES, steps=STEPS, piece=st.integers(1, 9), behind=BODIES)
def test_reads_what_a_file_of_the_body_would_give(
    data: bytes, steps: list[tuple[str, int | None]], piece: int, behind: bytes
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wsgi_input, "PIECE", piece)
        file, body = io.BytesIO(data), bounded(data + behind, len(data))
        terminated = bounded(data)
        promised = PromisedInput(io.BytesIO(data + behind), len(data))
        for name, size in steps:
            expected = step(file, name, size)
            assert step(body, name, size) == expected
            assert step(terminated, name, size) == expected
            assert step(promised, name, size) == expected


@settings(max_examples=200, deadline=None)
@given(data=BODIES, at_once=st.integers(1, 7), piece=st.integers(1, 9))
def test_a_server_that_reads_short_loses_nothing(data: bytes, at_once: int, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wsgi_input, "PIECE", piece)
        assert Input(Raw(data, at_once), None, Room()).read() == data
        assert Input(Raw(data, at_once), None, Room()).readlines() == io.BytesIO(data).readlines()
        assert PromisedInput(Raw(data, at_once), len(data)).read() == data
        assert PromisedInput(Raw(data, at_once), len(data)).readlines() == io.BytesIO(data).readlines()


def test_a_short_read_is_handed_on_and_not_waited_for() -> None:
    assert Input(Raw(b"x" * 300_000, at_once=100), None, Room()).read(200_000) == b"x" * 100


def test_the_hint_of_readlines_is_obeyed() -> None:
    assert bounded(b"1\n2\n3\n").readlines(3) == [b"1\n", b"2\n"]


READS: list[Callable[[Input], object]] = [lambda body: body.read(), lambda body: body.read(300_000), list]


@pytest.mark.parametrize("read", READS, ids=["all", "much", "lines"])
def test_room_is_asked_for_before_each_piece_is_read(read: Callable[[Input], object]) -> None:
    room = Room()
    read(room.input(b"x" * 200_000, 200_000))
    assert room.log == [
        ("asked", 0),
        (f"came {PIECE}", PIECE),
        ("asked", PIECE),
        (f"came {PIECE}", 2 * PIECE),
        ("asked", 2 * PIECE),
        (f"came {PIECE}", 3 * PIECE),
        ("asked", 3 * PIECE),
        ("came 3392, all", 200_000),
    ]


def test_a_body_of_announced_length_is_in_memory_once() -> None:
    """A copy would take it twice."""
    size = 64 * PIECE
    body = bounded(bytes(size), size)
    tracemalloc.start()
    try:
        assert len(body.read()) == size
        assert tracemalloc.get_traced_memory()[1] < 1.05 * size
    finally:
        tracemalloc.stop()


def test_a_client_that_announces_more_than_it_sends_costs_what_it_sent() -> None:
    body = bounded(b"x" * (2 * PIECE), 64 * PIECE).read()
    assert body == b"x" * (2 * PIECE)
    assert sys.getsizeof(body) < 3 * PIECE


def test_nothing_is_read_before_there_is_room() -> None:
    room = Room([False, False, True])
    assert room.input(b"body", 4).read() == b"body"
    assert room.log == [("asked", 0)] * 3 + [("came 4, all", 4)]


def test_a_body_of_unknown_length_is_over_when_nothing_more_comes() -> None:
    room = Room()
    room.input(b"body", None).read()
    assert [what for what, _ in room.log] == ["asked", "came 4", "asked", "came 0, all"]


class Full(Room):
    def may_read(self) -> bool:
        super().may_read()
        raise MemoryPressure


class TooMuch(Room):
    def came(self, size: int, *, more: bool) -> None:
        super().came(size, more=more)
        raise BodyTooLarge


@pytest.mark.parametrize(("kind", "error", "read"), [(Full, MemoryPressure, 0), (TooMuch, BodyTooLarge, PIECE)])
def test_a_body_that_was_cut_stays_cut(kind: type[Room], error: type[MemoryPressure], read: int) -> None:
    room = kind()
    body = room.input(b"x" * 200_000, None)
    with pytest.raises(error):
        body.read()
    assert body.cut is error
    log = list(room.log)
    with pytest.raises(error):
        body.readline()
    assert room.log == log, "it would be counted twice"
    assert room.inner.tell() == read
    body.linger(None)
    assert room.inner.tell() == 200_000


def test_what_is_behind_the_body_is_the_next_requests() -> None:
    room = Room()
    body = room.input(b"body\nnext request", 5)
    assert (body.readline(), body.readline(), body.read(), body.read(3)) == (b"body\n", b"", b"", b"")
    body.linger(None)
    assert room.inner.tell() == 5


def test_a_text_reader_may_stand_on_it() -> None:
    assert bounded(b"").readable()


UNFRAMED = {"REQUEST_METHOD": "POST", "SERVER_PROTOCOL": "HTTP/2.0", "wsgi.input_terminated": True}


@pytest.mark.parametrize(
    ("headers", "rest"),
    [
        ({}, 0),
        ({"CONTENT_LENGTH": ""}, 0),
        ({"CONTENT_LENGTH": "0"}, 0),
        ({"CONTENT_LENGTH": "12"}, 12),
        ({"CONTENT_LENGTH": "²"}, 0),
        ({"CONTENT_LENGTH": "12", "HTTP_TRANSFER_ENCODING": "Chunked"}, PIECE),
        (UNFRAMED, PIECE),
        (UNFRAMED | {"CONTENT_LENGTH": "12"}, 12),
        (UNFRAMED | {"CONTENT_LENGTH": "0"}, 0),
        (UNFRAMED | {"REQUEST_METHOD": "GET"}, 0),
        (UNFRAMED | {"SERVER_PROTOCOL": "HTTP/1.1"}, 0),
        (UNFRAMED | {"wsgi.input_terminated": False}, 0),
    ],
)
def test_a_body_is_what_is_announced_or_may_come(headers: dict[str, Any], rest: int) -> None:
    assert body_of(headers).rest == rest


class Short(io.BytesIO):
    """A server's input of which one read takes ``lost`` bytes and then runs out of memory, as gunicorn's may."""

    def __init__(self, size: int, lost: int, *, after: int = PIECE) -> None:
        super().__init__(bytes(size))
        self._lost = lost
        self._after = after
        self.places: list[int] = []

    def read(self, size: int | None = -1) -> bytes:
        self.places.append(place()[0])
        assert self.tell() + (size or 0) <= len(self.getvalue()), "this would wait for the client's next request"
        if self._lost and self.tell() >= self._after:
            self.seek(self._lost, io.SEEK_CUR)
            self._lost = 0
            raise MemoryError
        return super().read(size)


def test_what_the_server_does_to_read_counts_as_its_own() -> None:
    body = Short(PIECE, 0)
    with app_runs():
        Input(body, PIECE, Room()).read()
        assert place()[0] == IN_APP
    assert set(body.places) == {IN_SERVER}


@pytest.mark.parametrize(
    "body",
    [Input(Short(8 << 20, 1 << 20), 8 << 20, Room()), PromisedInput(Short(8 << 20, 1 << 20, after=0), 8 << 20)],
    ids=lambda body: type(body).__name__,
)
def test_nothing_is_read_behind_a_gap(body: Limited) -> None:
    """The app would take what follows for the rest."""
    with pytest.raises(MemoryError):
        body.read()
    with pytest.raises(MemoryPressure, match="so no more of it can be read"):
        body.read()


def test_a_refused_body_is_read_and_dropped_on_behind_a_gap() -> None:
    """A client that still sends would lose its answer."""
    body = Short(8 << 20, PIECE)
    linger(body, (8 << 20) - PIECE, None)
    assert body.tell() == 8 << 20


def test_what_a_gap_took_is_not_waited_for_where_the_server_hands_out_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wsgi_input, "_LINGER_SECONDS", 0.01)
    server, client = socket.socketpair()
    with server, client, server.makefile("rb", buffering=0) as body:
        client.sendall(bytes(1000))
        linger(body, 2000, server)  # else this hangs: the client keeps the connection
        assert server.gettimeout() is None
