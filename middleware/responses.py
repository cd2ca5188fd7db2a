"""The refusals as bytes, made once: refusing must allocate next to nothing. RFC 9110 and RFC 9457."""

from __future__ import annotations

import json
import random
from typing import Any

from resource_monitor.errors import ConfigurationError


class Problem:
    """A prepared ``application/problem+json`` response. Figures of memory are never part of it: what a client may know
    of a server's memory is nothing.

    Of ``variants``, header lists, each response has one at random.
    """

    def __init__(self, status: int, title: str, detail: str, variants: list[list[tuple[str, str]]]) -> None:
        self.status = status
        self.body = json.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail}).encode()
        self.wsgi_status = f"{status} {title}"
        common = [
            ("content-type", "application/problem+json"),
            ("content-length", str(len(self.body))),
            ("cache-control", "no-store"),
        ]
        self._headers = [common + more for more in variants]
        self._asgi_headers = [[(name.encode(), value.encode()) for name, value in headers] for headers in self._headers]

    def wsgi_headers(self) -> list[tuple[str, str]]:
        """A list of its own for each response: PEP 3333 lets servers change it."""
        return list(random.choice(self._headers))

    def asgi_start(self, kind: str) -> dict[str, Any]:
        """The start message; ``kind`` is ``http.response.start`` or its websocket twin."""
        return {"type": kind, "status": self.status, "headers": list(random.choice(self._asgi_headers))}


class Refusal(Problem):
    """503, prepared once for every ``Retry-After``.

    The header takes whole seconds between ``retry_after`` and twice that (RFC 9110, section 10.2.3), so that clients
    refused together do not come back together. Raises :class:`ConfigurationError` for less than one second.
    """

    def __init__(self, retry_after: int = 1) -> None:
        if isinstance(retry_after, bool) or not isinstance(retry_after, int) or not 1 <= retry_after <= 86400:
            raise ConfigurationError(
                f"retry_after={retry_after!r} is not a number of seconds; give a whole number from 1 to 86400."
            )
        super().__init__(
            503,
            "Service Unavailable",
            "The service is short of memory; please try again later.",
            [
                [("retry-after", str(seconds))]
                for seconds in range(retry_after, min(2 * retry_after, retry_after + 60) + 1)
            ],
        )


TOO_LARGE = Problem(413, "Content Too Large", "The body of the request is larger than this service takes.", [[]])
"""The answer to a body beyond ``max_body``; trying again would not help, so there is no ``Retry-After``."""
