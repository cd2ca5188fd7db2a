"""Liveness and readiness over HTTP, as an ASGI and WSGI app to be mounted, for Kubernetes and load balancers.

Owns where the figures come from and what is told of them; ``readiness`` owns when a service is ready. A liveness probe
is always answered, for a process that is short of memory is not helped by being restarted with everyone in flight;
readiness is what takes load off it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import partial
from typing import Any, overload
from urllib.parse import parse_qs

from resource_monitor.admission import Pressure
from resource_monitor.errors import ConfigurationError, ProbeError
from resource_monitor.guard import refusals
from resource_monitor.limits import UNBOUNDED
from resource_monitor.middleware import checks
from resource_monitor.middleware.flask import MemoryBackpressure
from resource_monitor.middleware.readiness import Readiness
from resource_monitor.middleware.readings import DEFAULT_MIN_AVAILABLE
from resource_monitor.middleware.responses import Answer, headers_for
from resource_monitor.middleware.statistics import Statistics
from resource_monitor.monitor import MemoryMonitor, default_monitor
from resource_monitor.units import format_size

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LIVE, READY = "livez", "readyz"

# Longer than the Retry-After that clients get by default: those who were sent away are back before it is ready.
_DWELL = 5.0
# Where apps keep the middleware: what Flask's extensions leave, and Starlette's outermost layer.
_APPS = ("extensions", "middleware_stack")
# What must be left again, over what must be left, where that is not given.
_EXIT = 3 / 2


def _text(status: int, body: str, *more: tuple[str, str]) -> Answer:
    return Answer(status, [*headers_for("text/plain; charset=utf-8", None), *more], f"{body}\n".encode())


_ANSWERS = {True: _text(200, "ok"), False: _text(503, "not ready")}
_NOT_FOUND = _text(404, f"neither {LIVE} nor {READY}")
_NOT_ALLOWED = _text(405, "only GET and HEAD", ("allow", "GET, HEAD"))


class HealthEndpoint:
    """An app that answers ``/livez``, and its own root, with 200 as long as it can answer, and ``/readyz`` with 503
    while the service is short of memory; with ``?verbose``, unless ``verbose`` is false, in JSON with figures.

    ``follow`` is what has ``statistics()``, such as the middleware, or the Starlette, FastAPI or Flask app that has
    one: the service is not ready while that is shedding, nor for ``dwell`` seconds after. With ``enter``, or where
    nothing is followed, it is not ready either when less than that is available, until ``exit`` is: bytes, ``"64MiB"``
    or ``"5%"`` of the smallest limit. ``monitor`` is the middleware's, where it has one of its own. Raises
    :class:`~resource_monitor.ConfigurationError` for a value that cannot be meant.
    """

    def __init__(
        self,
        follow: object = None,
        *,
        enter: int | str | None = None,
        exit: int | str | None = None,
        dwell: float = _DWELL,
        verbose: bool = True,
        monitor: MemoryMonitor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if isinstance(dwell, bool) or not isinstance(dwell, int | float) or not 0 <= dwell <= 3600:
            raise ConfigurationError(f"dwell={dwell!r} is no time to dwell; give seconds, from 0 to 3600.")
        if isinstance(follow, MemoryBackpressure):
            raise ConfigurationError("A Flask extension may serve several apps; give the Flask app to be followed.")
        if follow is not None and not any(hasattr(follow, name) for name in ("statistics", *_APPS)):
            raise ConfigurationError(
                f"follow={follow!r} has no statistics(); give the middleware, or the app that has one."
            )
        if enter is None and follow is None:
            enter = DEFAULT_MIN_AVAILABLE
        self._enter = checks.amount("enter", 0 if enter is None else enter)
        self._exit = None if exit is None else checks.amount("exit", exit)
        self._by_memory = enter is not None or exit is not None
        self._follow = follow
        self._verbose = verbose
        self._given = monitor
        self._clock = clock
        self._readiness = Readiness(float(dwell))
        self._check(enter, exit)

    @overload
    def __call__(self, scope: Message, receive: Receive, send: Send, /) -> Awaitable[None]: ...
    @overload
    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any], /) -> Iterable[bytes]: ...
    @overload
    def __call__(self, scope: Message, /) -> Callable[[Receive, Send], Awaitable[None]]: ...

    def __call__(self, request: Any, *channels: Any) -> Any:
        """ASGI, WSGI, or ASGI 2, which is what servers take an app for whose call is no coroutine function."""
        if len(channels) == 2:
            return self._asgi(request, *channels)
        return self._wsgi(request, *channels) if channels else partial(self._asgi, request)

    async def _asgi(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            answer = self._answer(
                scope["method"], scope["path"], scope.get("root_path", ""), scope["query_string"].decode("latin-1")
            )
            await send(answer.asgi_start("http.response.start"))
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        elif scope["type"] == "lifespan":  # alone under a server
            kind = ""
            while kind != "lifespan.shutdown":
                kind = (await receive())["type"]
                await send({"type": f"{kind}.complete"})

    def _wsgi(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        method = environ["REQUEST_METHOD"]
        answer = self._answer(
            method, environ.get("PATH_INFO", ""), environ.get("SCRIPT_NAME", ""), environ.get("QUERY_STRING", "")
        )
        start_response(answer.wsgi_status, answer.wsgi_headers())
        return [b"" if method == "HEAD" else answer.body]  # hypercorn wants a piece, or sends nothing at all

    def _answer(self, method: str, path: str, mount: str, query: str) -> Answer:
        if method not in ("GET", "HEAD"):
            return _NOT_ALLOWED
        asked = _asked(path, mount)
        if asked is None:
            return _NOT_FOUND
        verbose = self._verbose and "verbose" in parse_qs(query, keep_blank_values=True)
        if asked == LIVE and not verbose:
            return _ANSWERS[True]
        statistics = None if self._follow is None else _statistics(self._follow)
        ready = self._ready(statistics)
        if not verbose:
            return _ANSWERS[ready]
        told = {"status": "ready" if ready else "not ready", **self._figures(statistics)}
        headers = headers_for("application/json", None)
        return Answer(200 if ready or asked == LIVE else 503, headers, json.dumps(told, indent=2).encode() + b"\n")

    def _ready(self, statistics: Statistics | None) -> bool:
        left, enter, exit = None, 0, 0
        if self._by_memory:
            try:
                monitor = self._monitor()
                left = monitor.headroom()
                enter, exit = self._thresholds(monitor.tightest())
                if left < (enter if self._readiness.ready else exit):
                    left = monitor.relieve()
            except ProbeError:
                left = None  # what cannot be read is no reason to send everyone away
        shedding, refusal_age = False, None
        if statistics is not None and not statistics.dry_run:  # which refuses nobody, and so must we
            shedding, refusal_age = statistics.pressure is Pressure.SHEDDING, statistics.refusal_age
        return self._readiness.look(
            self._clock(), left=left, enter=enter, exit=exit, shedding=shedding, refusal_age=refusal_age
        )

    def _figures(self, statistics: Statistics | None) -> dict[str, object]:
        figures: dict[str, object] = {"memory": self._memory()}
        if statistics is not None:
            age = statistics.refusal_age
            figures |= {
                "pressure": statistics.pressure,
                "in_flight": statistics.in_flight,
                "waiting": statistics.waiting,
                "admitted": statistics.admitted,
                "shed": statistics.shed_by_reason,
                "seconds_since_refusal": None if age is None else round(age, 1),
                "other_workers": statistics.workers,
            }
        return {**figures, "guard_refusals": refusals()}

    def _memory(self) -> dict[str, str | None] | None:
        try:
            reading = self._monitor().read()
        except ProbeError:
            return None
        if reading.limit is None:
            return {"available": None, "limit": None, "where": None}
        return {
            "available": format_size(reading.available),
            "limit": format_size(reading.limit),
            "where": reading.where,
        }

    def _monitor(self) -> MemoryMonitor:
        return default_monitor() if self._given is None else self._given

    def _thresholds(self, limit: int) -> tuple[int, int]:
        """What must be left, and must be left again, of ``limit``; bytes."""
        if limit == UNBOUNDED:
            return 0, 0
        enter = self._enter.of(limit)
        return enter, int(_EXIT * enter) if self._exit is None else max(enter, self._exit.of(limit))

    def _check(self, enter: int | str | None, exit: int | str | None) -> None:
        """Meet the limit, if it can be read now."""
        if not self._by_memory:
            return
        try:
            limit = self._monitor().tightest()
        except ProbeError:
            return
        if limit == UNBOUNDED:
            return
        if self._exit is not None and self._exit.of(limit) < self._enter.of(limit):
            raise ConfigurationError(f"exit={exit!r} is below enter={enter!r}; give at least that.")
        name, value = ("enter", enter) if exit is None else ("exit", exit)
        if self._thresholds(limit)[1] >= limit:
            raise ConfigurationError(
                f"{name}={value!r} asks for more than can be left of the memory limit of {format_size(limit)}, so that "
                "the service would never be ready again; give less, or a share such as '5%'."
            )


def _statistics(follow: object) -> Statistics:
    layer = follow
    if hasattr(follow, "extensions"):
        layer = follow.extensions.get("memory_backpressure")
    elif hasattr(follow, "middleware_stack"):
        layer = follow.middleware_stack
    while layer is not None:
        if callable(statistics := getattr(layer, "statistics", None)):
            found: Statistics = statistics()
            return found
        layer = getattr(layer, "app", None)
    raise ConfigurationError(
        f"{follow!r} has no memory backpressure that could be followed; wrap it first, and follow the middleware where "
        "that is around the app."
    )


def _asked(path: str, mount: str) -> str | None:
    """Which probe is asked for: servers and frameworks put the mount point into the path, or leave it out, or know more
    of it than the path does (a proxy that cut it off)."""
    path, mount = path.rstrip("/"), mount.rstrip("/")
    last = (path or mount).rpartition("/")[2]
    if last in (LIVE, READY):
        return last
    return LIVE if mount.endswith(path) else None
