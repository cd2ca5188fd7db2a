"""The Django middleware: first in ``MIDDLEWARE``, with the setting ``MEMORY_BACKPRESSURE``, under WSGI and under ASGI.

Owns Django's ways with responses and errors; ``entrance`` owns the waiting for room. The body of a request is Django's
business, which bounds what it keeps of one in memory.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any, Self

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import got_request_exception
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

from resource_monitor.errors import ConfigurationError
from resource_monitor.middleware.bodies import content_length
from resource_monitor.middleware.entrance import LoopEntrance, Stay, ThreadEntrance
from resource_monitor.middleware.environment import settle
from resource_monitor.middleware.gate import Gate
from resource_monitor.middleware.inapplicable import refuse_inapplicable
from resource_monitor.middleware.losses import let_go, lost_to_memory
from resource_monitor.middleware.options import Options
from resource_monitor.middleware.refusing import Shed
from resource_monitor.middleware.statistics import Statistics
from resource_monitor.middleware.steps import app_runs, as_app
from resource_monitor.middleware.wsgi_input import connection_of, linger

SETTING = "MEMORY_BACKPRESSURE"
"""The name of the setting: a dict of :class:`~resource_monitor.middleware.options.Options`, which may be left out."""

_OUTSIDE = "the WSGI or ASGI middleware around the application"
_INSTEAD = {"max_body": f"DATA_UPLOAD_MAX_MEMORY_SIZE, or {_OUTSIDE}", "body_timeout": _OUTSIDE}
_VISIT = "_memory_backpressure"
_END = object()


class MemoryBackpressureMiddleware:
    """Answers 503 before other middlewares and the view run while there is no memory for one more request, and in place
    of Django's page for errors when the request ran out of memory.

    Raises :class:`~django.core.exceptions.ImproperlyConfigured` for a setting that cannot be meant, and
    :class:`~resource_monitor.GuardError` when the allocation guard was asked for and cannot be installed.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        global _newest
        self.get_response = get_response
        self._on_loop = iscoroutinefunction(get_response)
        if self._on_loop:
            markcoroutinefunction(self)
        try:
            options, names = settle({}, _as_set())
            self._gate = _newest = Gate(names, **options)
        except ConfigurationError as error:
            raise ImproperlyConfigured(str(error)) from None
        self._threads = ThreadEntrance(self._gate)
        self._loops = LoopEntrance(self._gate)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._on_loop:
            return self._answer_on_loop(request)
        stay = self._threads.enter(self._ask(request))
        if isinstance(stay, Shed):
            return self._refusal(stay, request)
        response: HttpResponseBase | None = None
        with _Visit(self._gate, stay, request) as visit, app_runs():
            response = self.get_response(request)
        return self._answer(response, visit, request)

    async def _answer_on_loop(self, request: HttpRequest) -> HttpResponseBase:
        stay = await self._loops.enter(self._ask(request))
        if isinstance(stay, Shed):
            return self._refusal(stay, request)
        response: HttpResponseBase | None = None
        with _Visit(self._gate, stay, request) as visit:
            response = await as_app(self.get_response(request))
        return self._answer(response, visit, request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponseBase | None:
        """A view ran out of memory, and no other middleware had an answer for that."""
        visit: _Visit | None = getattr(request, _VISIT, None)
        shed = None if visit is None else visit.shed_for(error)
        if visit is None or shed is None:
            return None
        visit.error = error
        return self._refusal(shed, request)

    def _ask(self, request: HttpRequest) -> Any:
        headers = request.headers
        # of which Django may make a copy in memory, and of the rest a file
        most: int | None = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        length = content_length(headers.get("content-length")) or 0
        return self._gate.ask(
            request,
            request.method or "",
            request.path_info,
            request.META.get("SCRIPT_NAME", ""),
            length if most is None else min(length, most),
            preflight=request.method == "OPTIONS"
            and not length
            and "transfer-encoding" not in headers
            and "origin" in headers
            and "access-control-request-method" in headers,
        )

    def _answer(self, response: HttpResponseBase | None, visit: _Visit, request: HttpRequest) -> HttpResponseBase:
        """What to answer in the end; there is no response when Django let a ``MemoryError`` through."""
        error, visit.error = visit.error, None
        unanswered = response is None or (error is not None and response.status_code == 500)
        shed = self._gate.lost(visit.stay.admitted) if unanswered else None
        if error is not None and not self._gate.dry_run:
            let_go(error)  # not before: under ASGI frames of its traceback were only suspended
        if shed is not None:
            response = self._refusal(shed, request)
        assert response is not None  # in a dry run the error came through
        visit.stay.admitted.answered()
        response._resource_closers.insert(0, visit.stay.leave)  # type: ignore[attr-defined]
        # a file may be sent by the server, without being read here
        if isinstance(response, StreamingHttpResponse) and getattr(response, "file_to_stream", None) is None:
            content = response.streaming_content
            response.streaming_content = (
                visit.pieces(content) if isinstance(content, Iterator) else visit.pieces_on_loop(content)
            )
        return response

    def _refusal(self, shed: Shed, request: HttpRequest) -> HttpResponse:
        answer = self._gate.refusals.answer(shed, request.headers.get("accept"))
        body = b"" if request.method == "HEAD" else answer.body
        response = HttpResponse(body, status=answer.status, headers=dict(answer.wsgi_headers()))
        # else Django logs an error for each one, and may mail it; the first of a time of shedding is logged already
        response._has_been_logged = True  # type: ignore[attr-defined]
        if "wsgi.input" in request.META:
            unread = content_length(request.META.get("CONTENT_LENGTH")) or 0
            rest = partial(linger, request, unread, connection_of(request.META))
            response._resource_closers.append(rest)  # type: ignore[attr-defined]
        return response


class _Visit:
    """A request that was let in, and stays until its response is closed; ``error`` is what Django is answering for when
    it ran out of memory."""

    def __init__(self, gate: Gate, stay: Stay, request: HttpRequest) -> None:
        self._gate = gate
        self.stay = stay
        self.error: BaseException | None = None
        setattr(request, _VISIT, self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if self.shed_for(error) is not None:
            self.error = error
            return True
        if error is not None:
            self.stay.leave()
        return False

    def pieces(self, content: Iterator[bytes]) -> Iterator[bytes]:
        """A streaming response's content."""
        pieces = iter(content)
        try:
            while True:
                with app_runs():
                    piece = next(pieces, _END)
                if piece is _END:
                    return
                yield piece  # type: ignore[misc]
        except BaseException as error:
            if self.shed_for(error) is not None:
                let_go(error)
            raise

    async def pieces_on_loop(self, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The same for one of an asynchronous view."""

        async def following() -> Any:
            return await anext(pieces, _END)

        pieces = aiter(content)
        try:
            while (piece := await as_app(following())) is not _END:
                yield piece
        except BaseException as error:
            if self.shed_for(error) is not None:
                let_go(error)
            raise

    def shed_for(self, error: BaseException | None) -> Shed | None:
        """Why the request is refused that ended in ``error``; ``None`` for Django's own ones. Notes the loss to
        memory."""
        return self._gate.lost(self.stay.admitted) if lost_to_memory(error) else None


def statistics() -> Statistics:
    """What the middleware of this process did so far, the newest one where there are several. Raises
    :class:`~resource_monitor.ConfigurationError` before there is one."""
    if _newest is None:
        raise ConfigurationError(
            "There is no memory backpressure in this process yet; put "
            f"'{MemoryBackpressureMiddleware.__module__}.MemoryBackpressureMiddleware' first into MIDDLEWARE."
        )
    return _newest.statistics()


def _as_set() -> dict[str, tuple[str, object]]:
    """The options in the setting, with what they are called there."""
    given = getattr(settings, SETTING, {})
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{SETTING}={given!r} is no dict; give one of options, such as {{'dry_run': True}}.")
    known = sorted(Options.__optional_keys__)
    for option, value in given.items():
        if option not in known:
            [nearest] = get_close_matches(str(option).lower(), known, 1, 0.0)
            raise ConfigurationError(
                f"{SETTING} has {option!r}: {value!r}, which is no option; the nearest is {nearest!r}."
            )
    refuse_inapplicable(given, "Django's settings", _INSTEAD)
    return {option: (f"{SETTING}[{option!r}]", value) for option, value in given.items()}


def _note(request: HttpRequest | None = None, **_: object) -> None:
    """Called when Django begins to answer for an error of another middleware, or of a view that had no answer."""
    visit: _Visit | None = getattr(request, _VISIT, None)
    error = sys.exception()
    if visit is not None and lost_to_memory(error):
        visit.error = error


_newest: Gate | None = None
got_request_exception.connect(_note, dispatch_uid=__name__)
