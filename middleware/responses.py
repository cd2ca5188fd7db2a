"""Answers as bytes, made once: refusing must allocate next to nothing. RFC 9110 and RFC 9457.

Owns how an answer is written, for WSGI and ASGI alike; ``refusing`` owns which one a request gets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

Header = tuple[str, str]

# RFC 9110, section 15.5.14; the standard library's name for it is an older one before Python 3.13.
_PHRASES = {413: "Content Too Large"}


class Answer:
    """A whole response; ``headers`` are without ``content-length``, which is that of ``body``."""

    __slots__ = ("_asgi_headers", "_headers", "body", "status", "wsgi_status")

    def __init__(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        self.status = status
        self.wsgi_status = f"{status} {phrase(status)}"
        self.body = body
        self._headers = [*headers, ("content-length", str(len(body)))]
        self._asgi_headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self._headers
        ]

    def wsgi_headers(self) -> list[Header]:
        """A list of its own for each response: PEP 3333 lets servers change it."""
        return list(self._headers)

    def asgi_start(self, kind: str) -> dict[str, Any]:
        """The start message; ``kind`` is ``http.response.start`` or its websocket twin."""
        return {"type": kind, "status": self.status, "headers": list(self._asgi_headers)}


class Prepared:
    """The answers of one ``status`` for every ``Retry-After``, as ``application/problem+json`` and, for clients that do
    not take JSON, as text. Figures of memory are never part of them: what a client may know of a server's memory is
    nothing."""

    def __init__(self, status: int, detail: str, seconds: Iterable[int] = ()) -> None:
        problem = {"type": "about:blank", "title": phrase(status), "status": status, "detail": detail}
        bodies = {True: json.dumps(problem).encode(), False: f"{detail}\n".encode()}
        kinds = {True: "application/problem+json", False: "text/plain; charset=utf-8"}
        self._answers = {
            (retry_after, as_json): Answer(status, headers_for(kinds[as_json], retry_after, vary="accept"), body)
            for retry_after in (*seconds, None)
            for as_json, body in bodies.items()
        }

    def answer(self, retry_after: int | None, *, as_json: bool) -> Answer:
        """One of them; ``retry_after`` is one of the ``seconds``, or ``None`` for an answer without the header."""
        return self._answers[retry_after, as_json]


def phrase(status: int) -> str:
    """The reason phrase of a status, ``"Unknown"`` for one that is not registered."""
    if status in _PHRASES:
        return _PHRASES[status]
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def headers_for(content_type: str, retry_after: int | None, *, vary: str | None = None) -> list[Header]:
    """What our answers say of themselves: nobody is to keep them, and when to come again (RFC 9110, section 10.2.3)."""
    headers = [("content-type", content_type), ("cache-control", "no-store")]
    if vary is not None:
        headers.append(("vary", vary))
    if retry_after is not None:
        headers.append(("retry-after", str(retry_after)))
    return headers
