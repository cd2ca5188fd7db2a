"""The WSGI adapter: for Flask, Django and every other WSGI app (PEP 3333)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Unpack

from resource_monitor.guard import thread_refusals
from resource_monitor.middleware.gate import Admitted, Gate
from resource_monitor.middleware.losses import let_go, lost_to_memory
from resource_monitor.middleware.options import Options
from resource_monitor.middleware.statistics import Statistics
from resource_monitor.middleware.steps import app_runs

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]

# PEP 3333 wants the error that a second start_response replaces an answer for; what it held is let go already.
_REPLACING = (MemoryError, MemoryError(), None)

ADMITTED = "resource_monitor.admitted"
"""The key in ``environ`` of what :meth:`Gate.enter` gave, for adapters that learn of a loss before this one does."""

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
        gate = self.gate
        method, path = environ.get("REQUEST_METHOD", ""), environ.get("PATH_INFO", "")
        ask = gate.ask(environ, method, path, environ.get("SCRIPT_NAME", ""))
        answer = gate.attempt(ask)
        admitted = answer if isinstance(answer, Admitted) else gate.refuse(ask, answer)
        if admitted is None:
            return _refuse(gate, environ, start_response)
        environ[ADMITTED] = admitted
        response = _Response(gate, admitted, environ, start_response)
        try:
            response.begin(self.app)
        except BaseException:
            admitted.leave()
            raise
        return response

    def statistics(self) -> Statistics:
        """What this middleware did so far."""
        return self.gate.statistics()


class _Response:
    """The app's response; lets go of the request when the server closes it, once however often that is.

    As long as the server was given nothing of the body, the refusal takes the place of a ``MemoryError``, and of a
    framework's 500 for one: frameworks answer after they handled the error, so what tells is that an allocation was
    refused on this thread since the request began.
    """

    def __init__(self, gate: Gate, admitted: Admitted, environ: Environ, start_response: StartResponse) -> None:
        self._gate = gate
        self._admitted = admitted
        self._environ = environ
        self._start_response = start_response
        self._refusals = thread_refusals()
        self._body: Iterable[bytes] = ()
        self._closed = self._began = self._given = self._withheld = False

    def begin(self, app: WSGIApp) -> None:
        """Call ``app``."""
        try:
            with app_runs():
                self._body = app(self._environ, self._start)
        except BaseException as error:
            if not self._withhold(error):
                raise

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._admitted.leave()

    def _start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        if status.startswith("500") and not self._given:
            error = exc_info[1] if exc_info else sys.exception()
            if lost_to_memory(error) or thread_refusals() != self._refusals:
                self._note_loss(error)
                return _discard
        self._began = True
        write: Callable[[bytes], object] = self._start_response(status, headers, *([exc_info] if exc_info else []))

        def written(data: bytes) -> object:
            self._given = True
            return write(data)

        return written

    def __iter__(self) -> Iterator[bytes]:
        try:
            chunks = iter(self._body)
            while not self._withheld:
                with app_runs():
                    chunk = next(chunks, None)
                if chunk is None or self._withheld:
                    break
                self._given = self._given or bool(chunk)
                yield chunk
        except BaseException as error:
            if not self._withhold(error):
                raise
        if self._withheld:
            yield from _refuse(self._gate, self._environ, self._start_response, replacing=self._began)

    def _withhold(self, error: BaseException) -> bool:
        """Whether the refusal takes the place of what the app raised."""
        if not lost_to_memory(error):
            return False
        self._note_loss(error)
        return not self._given

    def _note_loss(self, error: BaseException | None) -> None:
        self._withheld = True
        if error is not None:
            let_go(error)
        self._admitted.lose()


def _refuse(gate: Gate, environ: Environ, start_response: StartResponse, *, replacing: bool = False) -> Iterable[bytes]:
    _drain(environ)
    refusal = gate.refusal
    start_response(refusal.wsgi_status, refusal.wsgi_headers(), *([_REPLACING] if replacing else []))
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [refusal.body]


def _discard(data: bytes) -> None:
    """The write() of an error page that nobody will see."""


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
