"""What is asked of the server: one small function a scenario, from a seeded random source to the next request.

To add one, write a function here under ``@scenario``; endpoints and their parameters are those of ``server``. How the
requests are sent is the business of ``load``, what is expected of the answers that of ``judge``.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MB = 10**6
FILES, FILE_BYTES = 400, MB


@dataclass(frozen=True, slots=True)
class Request:
    """One request. ``body`` is in bytes and makes it a POST; ``timeout`` is the client's patience in seconds.

    ``kind`` tells apart requests of one scenario that deserve figures of their own.
    """

    path: str
    body: int = 0
    chunked: bool = False
    keep_alive: bool = False
    kind: str = ""
    timeout: float = 10.0


@dataclass(frozen=True, slots=True)
class Waves:
    """Load that comes and goes: ``idle`` seconds of none, ``busy`` seconds at the full rate, so many ``times``."""

    idle: float
    busy: float
    times: int

    @property
    def length(self) -> float:
        """Of all waves together; seconds."""
        return self.times * (self.idle + self.busy)

    def due(self, busy: float) -> float:
        """When a request is due that would be due at ``busy`` if there were no idle times; seconds."""
        return busy + self.idle * (1 + busy // self.busy)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A stream of requests. ``rate`` is per second, ``None`` takes the command line's; ``at_most`` ends it early.

    ``unloaded`` is how long a request takes while nothing else goes on; seconds, 0 for less than a hundredth.
    ``limit`` is the memory limit of the server's cgroup, bytes. ``workers`` is the number of server processes,
    ``forked`` from one that loaded the app, or each loading it. In a ``cheap`` scenario there is room for everything:
    nothing may be shed. ``prepare`` fills the directory of files that the server may read. ``waves`` set the length of
    the run and when the rate applies. ``limit_of`` names the scenario of the same requests whose best fixed limit is
    taken here too.
    """

    name: str
    what: str
    make: Callable[[random.Random], Request]
    unloaded: float = 0.0
    rate: float | None = None
    at_most: int | None = None
    limit: int = 256 * MB
    workers: int = 1
    forked: bool = False
    cheap: bool = False
    prepare: Callable[[Path], None] | None = None
    waves: Waves | None = None
    limit_of: str = ""

    def length(self, seconds: float) -> float:
        """How long the load runs where the command line says ``seconds``."""
        return self.waves.length if self.waves else seconds


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    what: str, **fields: Any
) -> Callable[[Callable[[random.Random], Request]], Callable[[random.Random], Request]]:
    """Register the decorated function under its name; ``fields`` are those of :class:`Scenario`."""

    def register(make: Callable[[random.Random], Request]) -> Callable[[random.Random], Request]:
        SCENARIOS[make.__name__] = Scenario(make.__name__, what, make, **fields)
        return make

    return register


def cold_files(directory: Path) -> None:
    """Files that are in nobody's page cache, so that the server's cgroup is charged for reading them."""
    for number in range(FILES):
        path = directory / str(number)
        if not path.exists():
            path.write_bytes(os.urandom(FILE_BYTES))
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@scenario("8 MB at once, held for 0.2 s", unloaded=0.21)
def burst(_: random.Random) -> Request:
    return Request("/work?mb=8&hold=0.2")


@scenario("0.3 s of waiting, then 8 MB, held for 0.2 s", unloaded=0.51)
def race(_: random.Random) -> Request:
    return Request("/work?mb=8&delay=0.3&hold=0.2")


@scenario("8 MB in 20 steps over 0.4 s", unloaded=0.41)
def grow(_: random.Random) -> Request:
    return Request("/grow?mb=8&hold=0.4")


@scenario("about 4 MB of small dictionaries, held for 0.2 s", unloaded=0.21)
def objects(_: random.Random) -> Request:
    return Request("/objects?mb=4&hold=0.2")


@scenario("sizes of a Pareto distribution, 2 to 64 MB, after 0.1 s, held for 0.2 s", unloaded=0.31)
def mixed(rng: random.Random) -> Request:
    return Request(f"/work?mb={min(64.0, 2 * rng.paretovariate(1.3)):.1f}&delay=0.1&hold=0.2")


@scenario("80 % pings, 20 % jobs of 32 MB after 0.1 s, held for 0.5 s", unloaded=0.61, rate=200)
def pingmix(rng: random.Random) -> Request:
    if rng.random() < 0.8:
        return Request("/ping", kind="ping")
    return Request("/work?mb=32&delay=0.1&hold=0.5", kind="job")


@scenario("uploads of 8 MB, held for 0.3 s after the last byte", unloaded=0.32, rate=100)
def upload(_: random.Random) -> Request:
    return Request("/upload?hold=0.3", body=8 * MB)


@scenario("the same uploads without a Content-Length", unloaded=0.32, rate=100)
def chunked(_: random.Random) -> Request:
    return Request("/upload?hold=0.3", body=8 * MB, chunked=True)


@scenario("8 MB in the thread pool, held for 0.2 s", unloaded=0.21)
def threads(_: random.Random) -> Request:
    return Request("/thread?mb=8&hold=0.2")


@scenario("0.3 s of waiting, then 8 MB, held for 0.2 s, on four server processes", unloaded=0.51, workers=4)
def workers(_: random.Random) -> Request:
    return Request("/work?mb=8&delay=0.3&hold=0.2")


@scenario(
    "the same on four that are forked from one that had loaded the app",
    unloaded=0.51,
    workers=4,
    forked=True,
    limit_of="workers",
)
def forked(rng: random.Random) -> Request:
    return workers(rng)


@scenario("0.3 s of waiting, then 8 MB, held for 0.8 s, in a limit of 1 GB", unloaded=1.11, limit=1000 * MB)
def roomy(_: random.Random) -> Request:
    return Request("/work?mb=8&delay=0.3&hold=0.8")


@scenario("the same on four server processes", unloaded=1.11, limit=1000 * MB, workers=4)
def crew(rng: random.Random) -> Request:
    return roomy(rng)


@scenario("0.1 s of waiting, then 8 MB in a NumPy array, held for 0.2 s", unloaded=0.31, rate=250)
def numpy(_: random.Random) -> Request:
    return Request("/array?mb=8&delay=0.1&hold=0.2")


@scenario("8 MB written to a file in tmpfs, held for 0.2 s", unloaded=0.21, rate=250)
def tmpfs(_: random.Random) -> Request:
    return Request("/tmpfs?mb=8&hold=0.2")


@scenario("a child process each, which takes 16 MB and holds them for 0.5 s", unloaded=0.52, rate=50)
def child(_: random.Random) -> Request:
    return Request("/child?mb=16&hold=0.5")


@scenario(
    "burst at 1.2 times what fits, for 4 s after 1 s of nothing, twice",
    unloaded=0.21,
    rate=150,
    waves=Waves(1, 4, 2),
    limit_of="burst",
)
def brim(rng: random.Random) -> Request:
    return burst(rng)


@scenario("race in four waves, of 5 s after 10 s of nothing", unloaded=0.51, waves=Waves(10, 5, 4), limit_of="race")
def wave(rng: random.Random) -> Request:
    return race(rng)


@scenario("1 MB that is never freed", rate=100)
def leak(_: random.Random) -> Request:
    return Request("/leak?mb=1")


@scenario("reads of different files, so that the page cache fills the cgroup", rate=200, cheap=True, prepare=cold_files)
def cache(rng: random.Random) -> Request:
    return Request(f"/file?number={rng.randrange(FILES)}")


@scenario("tiny requests on kept-alive connections", rate=1000, cheap=True)
def light(_: random.Random) -> Request:
    return Request("/ping", keep_alive=True)


@scenario("2,000 slow cheap streams, open at once", unloaded=5.01, rate=500, at_most=2000, cheap=True)
def longlived(_: random.Random) -> Request:
    return Request("/stream?hold=5", timeout=15.0)
