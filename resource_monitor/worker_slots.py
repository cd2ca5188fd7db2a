"""How the workers' table lies in its file: a header, a roster, and slots; and which worker of a slot still lives.

Knows the bytes and what they can mean; whatever is torn, spoilt or absurd is as good as absent. When a slot is taken,
written and read is ``workers``' business.

A slot holds who took it, its figures, learned records, and a cell. Owner and figures are written twice, one after the
other and each with a checksum: one of the two is whole whenever they are read, and neither side needs a lock. The
records stand alone, and are read again when they were torn. Into the cell the worker's allocation guard writes what
passed, also while the worker has no time to write its figures.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from mmap import mmap
from typing import NamedTuple

from resource_monitor.errors import ProbeError

SLOTS = 64
"""How many workers share a table."""
ROUTES = 32
"""How many records a worker leaves there."""
FIELDS = 4
"""How many numbers a record has."""

Record = tuple[float | None, ...]
""":data:`FIELDS` numbers, none negative; ``None`` for one that is not known or does not bind."""

VERSION = 4

# owner's pid and start time, promised bytes, requests in flight, bytes passed and resident; with the checksum of these
# (zlib.crc32)
_FIGURES, _STATE = struct.Struct("=IQQQQQ"), struct.Struct("=IQQQQQI")
# checksum of what follows; time.monotonic() and the number of records, then these
_CHECKSUM, _LEARNED, _HEAD = struct.Struct("=I"), struct.Struct("=dI"), struct.Struct("=IdI")
_RECORD = struct.Struct(f"=8s{FIELDS}d")
_STATES = 2 * _STATE.size
_FREE = bytes(_STATES)
# bytes passed, and the complement; in 8 bytes each where the slot begins at a multiple of that
_CELL = struct.Struct("=QQ")
_CELL_AT = -(-(_STATES + _HEAD.size + ROUTES * _RECORD.size) // 8) * 8
_SLOT = _CELL_AT + _CELL.size

HEADER = struct.pack("=8s5I", b"rmworker", VERSION, SLOTS, _SLOT, ROUTES, FIELDS)
# other bytes whenever a slot is taken or left
_ROSTER, _FIRST = slice(48, 64), 64
SIZE = _FIRST + SLOTS * _SLOT
OFFSETS = range(_FIRST, SIZE, _SLOT)
"""Where the slots begin."""

_ALL_BITS = (1 << 64) - 1
# What nobody can have: PID_MAX_LIMIT of linux/threads.h, a pebibyte, a million requests, an exbibyte in a lifetime.
_MOST_PID, _MOST_BYTES, _MOST_REQUESTS, _MOST_PASSED = 1 << 22, 1 << 50, 1 << 20, 1 << 60


class Owner(NamedTuple):
    """A process: its pid, and its start time in ticks since boot. The two together are never given twice."""

    pid: int
    started: int


class State(NamedTuple):
    """What a slot's owner told: bytes promised, requests in flight, bytes passed so far, and how many bytes it was
    resident with then, 0 where that does not matter."""

    owner: Owner
    promised: int
    in_flight: int
    passed: int
    resident: int


def owner(pid: int) -> Owner | None:
    """The process ``pid``, ``None`` when it is no more. Raises :class:`ProbeError` when that cannot be found out."""
    path = f"/proc/{pid}/stat"
    try:
        with open(path, "rb") as file:
            # man 5 proc: the name before the last parenthesis may hold anything; state and start time are 3rd and 22nd
            fields = file.read().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else Owner(pid, int(fields[19]))
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError as error:
        raise ProbeError.from_errno(path, error.errno or 0) from error
    except (ValueError, IndexError):
        raise ProbeError(path, "does not hold what the kernel documents for it") from None


def lives(worker: Owner) -> bool:
    """Whether the process is still there; one that cannot be looked at, as without descriptors, is taken to be."""
    try:
        return owner(worker.pid) == worker
    except ProbeError:
        return True


def write_state(
    content: mmap, slot: int, worker: Owner, promised: int, in_flight: int, passed: int, resident: int
) -> None:
    """Write a slot's owner and figures; these are kept within what can be."""
    figures = _FIGURES.pack(
        *worker,
        min(max(promised, 0), _MOST_BYTES),
        min(max(in_flight, 0), _MOST_REQUESTS),
        min(max(passed, 0), _MOST_PASSED),
        min(max(resident, 0), _MOST_BYTES),
    )
    state = figures + _CHECKSUM.pack(zlib.crc32(figures))
    content[slot : slot + _STATE.size] = state
    content[slot + _STATE.size : slot + _STATES] = state


def clear_state(content: mmap, slot: int) -> None:
    """Make a slot free; its records stay."""
    content[slot : slot + _STATES] = _FREE
    content[slot + _CELL_AT : slot + _SLOT] = bytes(_CELL.size)


def cell(content: mmap, slot: int) -> memoryview:
    """Where a slot's owner has its guard write what passed."""
    return memoryview(content)[slot + _CELL_AT : slot + _SLOT]


def read_state(content: mmap, slot: int) -> State | None:
    """What a slot says; ``None`` when it is free or spoilt."""
    # the first once more: a fast writer may have got to the second one meanwhile
    for begin in (slot, slot + _STATE.size, slot):
        state = content[begin : begin + _STATE.size]
        pid, started, promised, in_flight, passed, resident, checksum = _STATE.unpack(state)
        if (
            0 < pid <= _MOST_PID
            and promised <= _MOST_BYTES
            and in_flight <= _MOST_REQUESTS
            and passed <= _MOST_PASSED
            and resident <= _MOST_BYTES
            and checksum == zlib.crc32(state[: _FIGURES.size])
        ):
            return State(Owner(pid, started), promised, in_flight, max(passed, _read_cell(content, slot)), resident)
    return None


def _read_cell(content: mmap, slot: int) -> int:
    """What passed by a slot's cell, 0 where it says nothing."""
    for _ in range(3):  # a fast writer may have got to the first half meanwhile
        passed, complement = _CELL.unpack_from(content, slot + _CELL_AT)
        if passed ^ complement == _ALL_BITS and passed <= _MOST_PASSED:
            return int(passed)
    return 0


def write_records(content: mmap, slot: int, records: Mapping[str, Record], now: float) -> None:
    """Write the first :data:`ROUTES` of ``records`` in place of what a slot held."""
    packed = [
        _RECORD.pack(_key(name), *(math.nan if number is None else number for number in record))
        for name, record in islice(records.items(), ROUTES)
    ]
    body = _LEARNED.pack(now, len(packed)) + b"".join(packed)
    begin = slot + _STATES
    content[begin : begin + _CHECKSUM.size + len(body)] = _CHECKSUM.pack(zlib.crc32(body)) + body


def read_records(content: mmap, slot: int) -> tuple[float, bytes]:
    """When a slot's records were written, and these for :func:`find`; at 0 and none when there are none or spoilt."""
    begin = slot + _STATES
    checksum, _, count = _HEAD.unpack_from(content, begin)
    if not 0 < count <= ROUTES:
        return 0.0, b""
    # from here on a copy, which nobody writes to
    body = content[begin + _CHECKSUM.size : begin + _HEAD.size + count * _RECORD.size]
    at, copied = _LEARNED.unpack_from(body)
    if checksum != zlib.crc32(body) or copied != count or not 0 < at < math.inf:
        return 0.0, b""
    return at, body[_LEARNED.size :]


def find(records: bytes, name: str) -> Record | None:
    """The record of that name."""
    key = _key(name)
    if key in records:
        for found, *numbers in _RECORD.iter_unpack(records):
            if found == key and all(math.isnan(number) or 0 <= number <= _MOST_BYTES for number in numbers):
                return tuple(None if math.isnan(number) else number for number in numbers)
    return None


def living(content: mmap, *, besides: int | None = None) -> list[int]:
    """The slots of living workers, without that of whoever asks."""
    # most slots are free, which is told at a glance
    taken = [slot for slot in OFFSETS if content[slot : slot + _STATES] != _FREE and slot != besides]
    states = [(slot, read_state(content, slot)) for slot in taken]
    return [slot for slot, state in states if state is not None and lives(state.owner)]


def knowing(content: mmap) -> list[int]:
    """The slots with records."""
    return [slot for slot in OFFSETS if read_records(content, slot)[1]]


def free(content: mmap) -> int | None:
    """The slot to be taken next: of those without a living worker one without records, or with the oldest ones."""
    taken = living(content)
    return min(
        (slot for slot in OFFSETS if slot not in taken), key=lambda slot: read_records(content, slot)[0], default=None
    )


def roster(content: mmap) -> bytes:
    """Bytes that stay the same as long as no slot is taken or left."""
    return content[_ROSTER]


def change_roster(content: mmap) -> None:
    """Let everybody know that a slot was taken or left."""
    content[_ROSTER] = os.urandom(16)


@lru_cache(maxsize=1024)
def _key(name: str) -> bytes:
    return blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()
