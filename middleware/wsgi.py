"""The WSGI adapter: for Flask, Django and every other WSGI app (PEP 3333)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Unpack

from resource_monitor.guard import thread_refusals
from resource_monitor.middleware.gate import Gate, Statistics
from resource_monitor.middleware.losses import let_go, lost_to_memory
from resource_monitor.middleware.options import Options

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]

# A client that still sends gets a reset in place of the answer when the server closes on unread data, so a refused body
# is read up to this many bytes, in pieces, and dropped.
_DRAIN_LIMIT = 1 << 20
_DRAIN_PIECE = 1 << 16


class WSGIMemoryBackpressureMiddleware:
    """Answers 503 before ``app`` runs while there is no memory for one more request, and in place of its answer when
    it ran out of memory before the response started.

    The keyword options are those of :class:`~resource_monitor.middleware.options.Options`. Raises
    :class:`~resource_monitor.ConfigurationError` for a value that cannot be meant, and
    :class:`~resource_monitor.GuardError` when the allocation guard was asked for and cannot be installed.
    """

    def __init__(self, app: WSGIApp, **options: Unpack[Options]) -> None:
        self.app = app
        self.gate = Gate(**options)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if not self.gate.enter(environ.get("PATH_INFO", ""), environ.get("SCRIPT_NAME", "")):
            _drain(environ)
            return _refuse(self.gate, environ, start_response)
        response = _Response(self.gate, environ, start_response)
        try:
            response.begin(self.app)
        except BaseException:
            self.gate.leave()
            raise
        return response

    def statistics(self) -> Statistics:
        """What this middleware did so far."""
        return self.gate.statistics()


class _Response:
    """The app's response; lets go of the request when the server closes it, once however often that is.

    While nothing was handed to the server yet, a ``MemoryError`` and a 500 that followed a refused allocation on this
    thread become the 503.
    """

    def __init__(self, gate: Gate, environ: Environ, start_response: StartResponse) -> None:
        self._gate: Gate | None = gate
        self._refuse: Callable[..., Iterable[bytes]] = lambda *exc_info: self._replace(
            gate, environ, start_response, *exc_info
        )
        self._start_response = start_response
        self._refusals = thread_refusals()
        self._guarded = gate.guarded
        self._response: Iterable[bytes] = ()
        self._withheld = False
        self._started = False

    def begin(self, app: WSGIApp) -> None:
        """Call ``app``."""

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._response)
