"""What guards the server: one small function a strategy, from the app to the guarded app.

To add one, write a function here under ``@strategy``; it runs in the server's process, and what it imports is imported
there alone. Options of uvicorn, the environment and other runtimes are fields of :class:`Strategy`.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.overload.asgi import App, Check

RESERVE = 24 * 10**6
"""What the simple checks want to be left before they admit a request; bytes."""
BEST_LIMITS = Path(__file__).with_name("best_limits.json")
JEMALLOC = "libjemalloc.so.2"


@dataclass(frozen=True, slots=True)
class Strategy:
    """A way to guard the server: ``wrap`` goes around the app, ``environment`` and ``preload`` are the process's.

    ``limit_concurrency`` is uvicorn's option. ``node`` runs the server in ``node/`` instead, which does not know the
    scenarios in ``skips``. ``ours`` colours the chart.
    """

    name: str
    what: str
    wrap: Callable[[App], App]
    environment: Mapping[str, str] = field(default_factory=dict)
    preload: str = JEMALLOC
    limit_concurrency: int | None = None
    node: bool = False
    skips: frozenset[str] = frozenset()
    ours: bool = False


STRATEGIES: dict[str, Strategy] = {}


def strategy(
    name: str,
    what: str,
    *,
    environment: Mapping[str, str] | None = None,
    preload: str = JEMALLOC,
    node: bool = False,
    skips: frozenset[str] = frozenset(),
    ours: bool = False,
) -> Callable[[Callable[[App], App]], Callable[[App], App]]:
    """Register the decorated function; the arguments are the fields of :class:`Strategy`."""

    def register(wrap: Callable[[App], App]) -> Callable[[App], App]:
        STRATEGIES[name] = Strategy(name, what, wrap, environment or {}, preload, None, node, skips, ours)
        return wrap

    return register


def find(name: str, scenario: str = "") -> Strategy:
    """The strategy called ``name``; ``best-limit`` differs by ``scenario``. ``ValueError`` when there is none."""
    kind, colon, number = name.partition(":")
    if kind == "limit-concurrency" and colon:
        if not number.isdecimal() or int(number) < 1:
            raise ValueError(f"{name!r} has no number of connections after the colon; write limit-concurrency:27.")
        return replace(STRATEGIES["limit-concurrency"], name=name, limit_concurrency=int(number))
    if name == "best-limit" and scenario:
        return replace(STRATEGIES[name], limit_concurrency=_best_limit(scenario))
    if name not in STRATEGIES or name == "limit-concurrency":
        raise ValueError(f"No strategy is called {name!r}; --list shows them.")
    return STRATEGIES[name]


def _best_limit(scenario: str) -> int:
    limits = json.loads(BEST_LIMITS.read_text()) if BEST_LIMITS.exists() else {}
    if scenario not in limits:
        raise ValueError(
            f"{BEST_LIMITS.name} has no limit for {scenario!r}; find it with --sweep --scenarios {scenario}."
        )
    return int(limits[scenario]["limit"])


@strategy("none", "no guard")
def _none(app: App) -> App:
    return app


@strategy("limit-concurrency", "uvicorn --limit-concurrency N, written limit-concurrency:N")
def _limit_concurrency(app: App) -> App:
    return app


@strategy("best-limit", "uvicorn --limit-concurrency at the best value for this very scenario, found by a sweep")
def _best(app: App) -> App:
    return app


@strategy("psutil", "a check before each request: psutil's available memory of the machine")
def _psutil(app: App) -> App:
    import psutil

    return Check(app, lambda: psutil.virtual_memory().available >= RESERVE)


@strategy("cgroup", "a check before each request: the cgroup's limit − usage")
def _cgroup(app: App) -> App:
    limit, usage = _cgroup_files()
    return Check(app, lambda: _number(limit) - _number(usage) >= RESERVE)


@strategy(
    "rust-original", "the rule of the Rust crate: limit − usage + jemalloc's mapped − active, its epoch never advanced"
)
def _rust_original(app: App) -> App:
    limit, usage = _cgroup_files()
    mallctl = ctypes.CDLL(None).mallctl

    def statistic(name: bytes) -> int:
        value, size = ctypes.c_size_t(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_size_t))
        if mallctl(name, ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
            raise RuntimeError(f"jemalloc has no {name.decode()}; preload a build with statistics.")
        return value.value

    def admits() -> bool:
        held = statistic(b"stats.mapped") - statistic(b"stats.active")
        return _number(limit) - _number(usage) + held >= RESERVE

    return Check(app, admits)


@strategy(
    "under-pressure",
    "@fastify/under-pressure on Node by its memory thresholds, sampling every 10 ms",
    preload="",
    node=True,
    skips=frozenset({"threads", "workers", "forked", "crew", "numpy", "tmpfs", "child"}),
)
def _under_pressure(app: App) -> App:
    return app


@strategy("admission", "this project: the check before each request alone", ours=True)
def _admission(app: App) -> App:
    from resource_monitor.middleware import MemoryBackpressureMiddleware

    return MemoryBackpressureMiddleware(app, allocation_guard=False)


@strategy("guard", "this project: the allocation guard alone", ours=True)
def _guard(app: App) -> App:
    from resource_monitor.middleware import MemoryBackpressureMiddleware

    return MemoryBackpressureMiddleware(app, min_available=0, allocation_guard=True)


@strategy("ours-pymalloc-off", "the same with PYTHONMALLOC=malloc", environment={"PYTHONMALLOC": "malloc"}, ours=True)
@strategy("ours-glibc", "the same on glibc's malloc", preload="", ours=True)
@strategy("ours", "this project: MemoryBackpressureMiddleware(app, allocation_guard=True), nothing tuned", ours=True)
def _ours(app: App) -> App:
    from resource_monitor.middleware import MemoryBackpressureMiddleware

    return MemoryBackpressureMiddleware(app, allocation_guard=True)


@strategy("ours-waiting", "the same with max_wait=1: requests wait up to a second for room", ours=True)
def _waiting(app: App) -> App:
    from resource_monitor.middleware import MemoryBackpressureMiddleware

    return MemoryBackpressureMiddleware(app, allocation_guard=True, max_wait=1)


def _cgroup_files() -> tuple[Path, Path]:
    """The files with the limit and the usage of this process's memory cgroup, v1 or v2."""
    groups = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), path.lstrip("/")))
    if "memory" in groups:
        directory = Path("/sys/fs/cgroup/memory", groups["memory"])
        return directory / "memory.limit_in_bytes", directory / "memory.usage_in_bytes"
    directory = Path("/sys/fs/cgroup", groups[""])
    return directory / "memory.max", directory / "memory.current"


def _number(path: Path) -> int:
    with path.open() as file:
        return int(file.read())
