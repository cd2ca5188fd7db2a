"""Open-loop load against one server, and a record of what came back and of the server's memory meanwhile.

Requests arrive at a rate, whether or not earlier ones were answered, as independent clients' do. The memory is followed
through /stats, where a new process shows as well. What is made of the record is left to others.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import resource
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import httpx

# httpcore looks through its whole pool at every request, so that one client with a thousand open connections would
# itself be the bottleneck.
_CLIENTS = 32
_SAMPLE_INTERVAL = 0.04
_SAMPLE_TIMEOUT = 1.0
_READY_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of request; ``body`` is the number of bytes posted."""

    path: str
    about: str
    body: int = 0


SCENARIOS = {
    "burst": Scenario("/work?mb=8&hold=0.2", "take 8 MB at once, hold them for 0.2 s"),
    "race": Scenario("/work?mb=8&delay=0.3&hold=0.2", "wait 0.3 s, then take 8 MB and hold them for 0.2 s"),
    "grow": Scenario("/work?mb=8&mode=grow&hold=0.4", "take 8 MB in 20 steps within 0.4 s"),
    "objects": Scenario("/work?mb=4&mode=objects&hold=0.2", "take 4 MB of small dicts, hold them for 0.2 s"),
    "upload": Scenario("/upload", "post a body of 8 MB", body=8_000_000),
    "ping": Scenario("/ping", "take nothing"),
}


class Outcome(StrEnum):
    """How a request ended, for its client."""

    GOOD = "good"
    SHED = "shed"
    """Refused in good order: a 503."""
    FAILED = "failed"
    """Reset, refused connection, timeout, or another status."""


@dataclass(frozen=True, slots=True)
class Finished:
    """One request: when it ended and how long it took, in seconds; times count from the start of the load."""

    at: float
    outcome: Outcome
    latency: float


@dataclass(frozen=True, slots=True)
class Sample:
    """What the server said of its memory; seconds from the start of the load, bytes."""

    at: float
    available: int
    limit: int | None


@dataclass(slots=True)
class Record:
    """All that happened to one target.

    ``seconds`` is how long requests arrived, ``start`` when the first did by :func:`time.monotonic`, and ``kills`` when
    the server's process ended, in seconds from then.
    """

    label: str
    seconds: float
    start: float = 0.0
    finished: list[Finished] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)
    allocator: str = "unknown"
    _tally: Counter[Outcome] = field(default_factory=Counter)

    def add(self, request: Finished) -> None:
        self.finished.append(request)
        self._tally[request.outcome] += 1

    def count(self, outcome: Outcome) -> int:
        return self._tally[outcome]

    def latency(self, outcome: Outcome, share: float) -> float | None:
        """The latency in seconds that ``share`` of the requests with this outcome stayed within."""
        ordered = sorted(request.latency for request in self.finished if request.outcome is outcome)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None


class NeverReady(Exception):
    """The target did not answer before the load began; the text names it."""


async def run(
    label: str,
    url: str,
    scenario: Scenario,
    *,
    rate: float,
    seconds: float,
    timeout: float = 5.0,
    progress: Callable[[Record], object] = lambda record: None,
) -> Record:
    """Send ``rate`` requests a second for ``seconds``, wait for their answers, then for the server to be there again.

    Raises :class:`NeverReady`.
    """
    _raise_descriptor_limit()
    record = Record(label, seconds)
    trust = ssl.create_default_context()
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(
                    base_url=url,
                    verify=trust,
                    trust_env=False,
                    timeout=timeout,
                    limits=httpx.Limits(max_connections=None, max_keepalive_connections=4),
                )
            )
            for _ in range(_CLIENTS + 1)
        ]
        await _ready(clients[-1], url)
        watcher = _Watcher(clients.pop(), record)
        watching = asyncio.create_task(watcher.watch())
        try:
            await _arrivals(clients, scenario, record, rate, timeout, watcher.start, progress)
            await watcher.recovered()
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
    return record


async def _arrivals(
    clients: list[httpx.AsyncClient],
    scenario: Scenario,
    record: Record,
    rate: float,
    timeout: float,
    start: float,
    progress: Callable[[Record], object],
) -> None:
    chance = random.Random(1)  # the same arrivals for every target
    client = itertools.cycle(clients)
    body = b"x" * scenario.body
    due = start
    async with asyncio.TaskGroup() as group:
        while due < start + record.seconds:
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            group.create_task(_request(next(client), scenario.path, body, timeout, record, start))
            progress(record)
            due += chance.expovariate(rate)


async def _request(
    client: httpx.AsyncClient, path: str, body: bytes, timeout: float, record: Record, start: float
) -> None:
    began = time.monotonic()
    try:
        async with asyncio.timeout(timeout):
            response = await (client.post(path, content=body) if body else client.get(path))
    except (httpx.HTTPError, TimeoutError, OSError):
        outcome = Outcome.FAILED
    else:
        outcome = {200: Outcome.GOOD, 503: Outcome.SHED}.get(response.status_code, Outcome.FAILED)
    now = time.monotonic()
    record.add(Finished(now - start, outcome, now - began))


class _Watcher:
    """Asks /stats again and again; a process that started later than the one before means that that one ended."""

    def __init__(self, client: httpx.AsyncClient, record: Record) -> None:
        self.start = record.start = time.monotonic()
        self._client = client
        self._record = record
        self._process: tuple[int, float] | None = None
        self._silent_since: float | None = None
        self._answered = asyncio.Event()

    async def watch(self) -> None:
        while True:
            at = time.monotonic() - self.start
            try:
                async with asyncio.timeout(_SAMPLE_TIMEOUT):
                    answer = (await self._client.get("/stats")).raise_for_status().json()
            except (httpx.HTTPError, TimeoutError, OSError):
                self._silent_since = at if self._silent_since is None else self._silent_since
            else:
                self._note(at, answer)
                self._answered.set()
            await asyncio.sleep(_SAMPLE_INTERVAL)

    async def recovered(self) -> None:
        """Wait for one more answer; a server that stays away has ended too."""
        self._answered.clear()
        try:
            async with asyncio.timeout(_READY_TIMEOUT):
                await self._answered.wait()
        except TimeoutError:
            self._record.kills.append(self._silent_since or self._record.seconds)

    def _note(self, at: float, answer: dict[str, Any]) -> None:
        process = (answer["pid"], answer["started"])
        if self._process not in (None, process):
            self._record.kills.append(at if self._silent_since is None else self._silent_since)
        self._process, self._silent_since = process, None
        self._record.allocator = answer["allocator"]
        if memory := answer["memory"]:
            self._record.samples.append(Sample(at, memory["available"], memory["limit"]))


async def _ready(client: httpx.AsyncClient, url: str) -> None:
    deadline = time.monotonic() + _READY_TIMEOUT
    while True:
        with contextlib.suppress(httpx.HTTPError, OSError):
            if (await client.get("/healthz")).is_success:
                return
        if time.monotonic() > deadline:
            raise NeverReady(f"{url}/healthz did not answer within {_READY_TIMEOUT:.0f} s; is the server running?")
        await asyncio.sleep(0.05)


def _raise_descriptor_limit() -> None:
    """Thousands of connections wait at once when a server hangs; the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 16384 if hard == resource.RLIM_INFINITY else min(16384, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
