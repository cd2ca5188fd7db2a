"""The refusal as bytes, made once: refusing must allocate next to nothing. RFC 9110 and RFC 9457."""

from __future__ import annotations

import json
import random
from typing import Any

from resource_monitor.errors import ConfigurationError

_STATUS = 503
_REASON = "Service Unavailable"
# No memory figures: what a client may know of a server's memory is nothing.
_BODY = json.dumps(
    {
        "type": "about:blank",
        "title": _REASON,
        "status": _STATUS,
        "detail": "The service is short of memory; please try again later.",
    }
).encode()


class Refusal:
    """Prepared 503 responses that differ in ``Retry-After`` alone.

    The header takes whole seconds between ``retry_after`` and twice that (RFC 9110, section 10.2.3), so that clients
    refused together do not come back together. Raises :class:`ConfigurationError` for less than one second.
    """

    def __init__(self, retry_after: int = 1) -> None:
        if isinstance(retry_after, bool) or not isinstance(retry_after, int) or not 1 <= retry_after <= 86400:
            raise ConfigurationError(
                f"retry_after={retry_after!r} is not a number of seconds; give a whole number from 1 to 86400."
            )
        self.body = _BODY
        self.wsgi_status = f"{_STATUS} {_REASON}"
        self._headers = [
            [
                ("content-type", "application/problem+json"),
                ("content-length", str(len(_BODY))),
                ("cache-control", "no-store"),
                ("retry-after", str(seconds)),
            ]
            for seconds in range(retry_after, min(2 * retry_after, retry_after + 60) + 1)
        ]
        self._asgi_headers = [[(name.encode(), value.encode()) for name, value in headers] for headers in self._headers]

    def wsgi_headers(self) -> list[tuple[str, str]]:
        """A list of its own for each response: PEP 3333 lets servers change it."""
        return list(random.choice(self._headers))

    def asgi_start(self, kind: str) -> dict[str, Any]:
        """The start message; ``kind`` is ``http.response.start`` or its websocket twin."""
        return {"type": kind, "status": _STATUS, "headers": list(random.choice(self._asgi_headers))}
