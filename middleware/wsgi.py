"""The WSGI adapter: for Flask, Django and every other WSGI app (PEP 3333)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Unpack

from resource_monitor.middleware.gate import Gate, Statistics
from resource_monitor.middleware.options import Options

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]

# A client that still sends gets a reset in place of the answer when the server closes on unread data, so a refused body
# is read up to this many bytes, in pieces, and dropped.
_DRAIN_LIMIT = 1 << 20
_DRAIN_PIECE = 1 << 16


class WSGIMemoryBackpressureMiddleware:
    """Answers 503 before ``app`` runs while there is no memory for one more request.

    The keyword options are those of :class:`~resource_monitor.middleware.options.Options`. Raises
    :class:`~resource_monitor.ConfigurationError` for a value that cannot be meant.
    """

    def __init__(self, app: WSGIApp, **options: Unpack[Options]) -> None:
        self.app = app
        self._gate = Gate(**options)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        gate = self._gate
        if not gate.enter(environ.get("PATH_INFO", ""), environ.get("SCRIPT_NAME", "")):
            return self._refuse(environ, start_response)
        try:
            response = self.app(environ, start_response)
        except BaseException:
            gate.leave()
            raise
        return _Released(response, gate.leave)

    def statistics(self) -> Statistics:
        """What this middleware did so far."""
        return self._gate.statistics()

    def _refuse(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        _drain(environ)
        refusal = self._gate.refusal
        start_response(refusal.wsgi_status, refusal.wsgi_headers())
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [refusal.body]


class _Released:
    """The app's response; lets go of the request when the server closes it, once however often that is."""

    def __init__(self, response: Iterable[bytes], leave: Callable[[], None]) -> None:
        self._response = response
        self._leave: Callable[[], None] | None = leave

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._response)

    def close(self) -> None:
        leave, self._leave = self._leave, None
        try:
            close = getattr(self._response, "close", None)
            if close is not None and leave is not None:
                close()
        finally:
            if leave is not None:
                leave()


def _drain(environ: Environ) -> None:
    """Read what the client announced or still sends, within bounds; a client that stopped is not waited for."""
    body = environ.get("wsgi.input")
    if body is None:
        return
    chunked = "chunked" in environ.get("HTTP_TRANSFER_ENCODING", "").lower()
    announced = environ.get("CONTENT_LENGTH") or ""
    left = _DRAIN_LIMIT if chunked else min(_DRAIN_LIMIT, int(announced) if announced.isdecimal() else 0)
    with suppress(OSError):
        while left > 0 and (piece := body.read(min(left, _DRAIN_PIECE))):
            left -= len(piece)
