"""Which answer a refused request gets, and who is told of it: the prepared one or the people's own (``response=``), and
their ``on_shed=``. What people's functions do wrong costs no request its refusal.

``responses`` owns how answers are written, ``negotiation`` what clients take, the adapters the sending.
"""

from __future__ import annotations

import inspect
import json
import logging
import random
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from resource_monitor.admission import Reason
from resource_monitor.errors import ConfigurationError
from resource_monitor.middleware import checks
from resource_monitor.middleware.asking import Ask
from resource_monitor.middleware.negotiation import accepts_json
from resource_monitor.middleware.paths import full_path
from resource_monitor.middleware.responses import Answer, Header, Prepared, headers_for

logger = logging.getLogger("resource_monitor")

# RFC 9110, sections 5.6.2 and 5.5: what a name may be made of, and what would end a value or the whole head.
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
# The framing is the server's business (RFC 9110, section 7.6.1, and PEP 3333), and content-length is the body's.
_FRAMING = frozenset({"content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade"})
_WITHOUT_BODY = frozenset({204, 205, 304})
# Clients refused together must not come back together; more than a minute apart they do not.
_SPREAD = 60

_TOO_LARGE = Prepared(413, "The body of the request is larger than this service takes.")


class Shed(NamedTuple):
    """A request that was refused, or lost after it began.

    ``path`` is with the mount point, ``method`` is ``"WEBSOCKET"`` for one; ``retry_after`` is in seconds, ``None``
    where coming again would not help. ``started`` tells that the app ran already: the request ran out of memory or its
    body found no room, and its client sees ``status`` unless the app's answer had begun.
    """

    reason: Reason
    method: str
    path: str
    status: int
    retry_after: int | None
    started: bool = False


@dataclass(frozen=True, slots=True)
class ShedResponse:
    """A refusal of one's own: ``body`` is bytes, a text, or a mapping that becomes JSON.

    ``status`` is that of :class:`Shed` where it is ``None``. ``headers`` go before what is added otherwise:
    ``content-type`` by the kind of body, ``cache-control: no-store`` and ``retry-after``. Raises
    :class:`ConfigurationError` for what cannot be sent.
    """

    body: bytes | str | Mapping[str, Any]
    status: int | None = None
    headers: Mapping[str, str] | tuple[Header, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.body, bytes | str | Mapping):
            raise ConfigurationError(f"The body {self.body!r} cannot be sent; give bytes, a text or a dict.")
        status = self.status
        if status is not None and (
            isinstance(status, bool)
            or not isinstance(status, int)
            or not 200 <= status <= 599
            or status in _WITHOUT_BODY
        ):
            raise ConfigurationError(f"status={status!r} is none of an answer with a body; give one such as 503.")
        for name, value in self.pairs():
            if not isinstance(name, str) or not _NAME.fullmatch(name) or name.lower() in _FRAMING:
                raise ConfigurationError(f"The header {name!r} cannot be set here; leave it to the server.")
            if not isinstance(value, str) or not _VALUE.fullmatch(value):
                raise ConfigurationError(f"The header {name!r} cannot be {value!r}; give one line of Latin-1.")

    def pairs(self) -> list[Header]:
        """The headers, one after the other."""
        return list(self.headers.items() if isinstance(self.headers, Mapping) else self.headers)

    def answer(self, shed: Shed) -> Answer:
        """As it is sent for ``shed``."""
        content_type, body = _encoded(self.body)
        own = self.pairs()
        named = {name.lower() for name, _ in own}
        added = [header for header in headers_for(content_type, shed.retry_after) if header[0] not in named]
        return Answer(self.status or shed.status, own + added, body)


Body = bytes | str | Mapping[str, Any]
Respond = Callable[[Shed], ShedResponse | Body | None]
OnShed = Callable[[Shed], object]


class Refusals:
    """All refusals of one middleware, those for want of memory with ``status``. Raises :class:`ConfigurationError` for
    what cannot be meant, and calls options there what ``names`` do."""

    def __init__(
        self,
        *,
        response: Respond | ShedResponse | Body | None = None,
        on_shed: OnShed | None = None,
        status: int = 503,
        retry_after: int = 1,
        names: checks.Names | None = None,
    ) -> None:
        names = checks.Names() if names is None else names
        self.status = status = checks.status(names["status"], status)
        retry_after = checks.retry_after(names["retry_after"], retry_after)
        self._seconds = range(retry_after, min(2 * retry_after, retry_after + _SPREAD) + 1)
        self._prepared = Prepared(status, "The service is short of memory; please try again later.", self._seconds)
        self._on_shed = _function(names["on_shed"], on_shed, "a function of the Shed")
        self._respond: Respond | None = None
        self._own: dict[int | None, Answer] = {}
        if response is not None and not isinstance(response, ShedResponse | bytes | str | Mapping):
            self._respond = _function(
                names["response"], response, "a ShedResponse, bytes, a text, a dict, or a function from the Shed to one"
            )
        elif response is not None:
            own = response if isinstance(response, ShedResponse) else ShedResponse(response)
            self._own = {seconds: own.answer(Shed(Reason.MEMORY, "", "", status, seconds)) for seconds in self._seconds}
        self._complaints: set[str] = set()
        self._for_memory = {
            as_json: [
                self._own.get(seconds) or self._prepared.answer(seconds, as_json=as_json) for seconds in self._seconds
            ]
            for as_json in (True, False)
        }

    @property
    def all_alike(self) -> bool:
        """Whether nobody is told of a single one: what is said of it depends on what the client takes alone."""
        return self._respond is None and self._on_shed is None

    def for_memory(self, accept: str | None) -> Answer:
        """What to send for want of memory where they are :attr:`all_alike`."""
        answers = self._for_memory[accept is None or accepts_json(accept)]
        return answers[int(random.random() * len(answers))]

    def shed(self, ask: Ask, reason: Reason, *, started: bool = False) -> Shed:
        """Settle that a request is refused, and tell of it."""
        path = full_path(ask.path, ask.mount)
        if reason is Reason.TOO_LARGE:
            shed = Shed(reason, ask.method, path, 413, None, started)
        else:
            seconds = self._seconds[int(random.random() * len(self._seconds))]
            shed = Shed(reason, ask.method, path, self.status, seconds, started)
        if self._on_shed is not None:
            try:
                self._refuse_coroutine(self._on_shed(shed))
            except Exception as error:
                self._complain("on_shed", error)
        return shed

    def answer(self, shed: Shed, accept: str | None) -> Answer:
        """What to send to a client whose ``Accept`` is this. A response that was given whole is for those who lack
        memory alone: it would tell those who sent too much to come again."""
        if self._respond is not None:
            try:
                given = self._respond(shed)
                self._refuse_coroutine(given)
                if given is not None:
                    return (given if isinstance(given, ShedResponse) else ShedResponse(given)).answer(shed)
            except Exception as error:
                self._complain("response", error)
        elif shed.retry_after in self._own:
            return self._own[shed.retry_after]
        prepared = _TOO_LARGE if shed.reason is Reason.TOO_LARGE else self._prepared
        return prepared.answer(shed.retry_after, as_json=accepts_json(accept))

    @staticmethod
    def _refuse_coroutine(given: object) -> None:
        if isinstance(given, Coroutine):
            given.close()
            raise TypeError("it gave a coroutine, which nobody awaits")

    def _complain(self, option: str, error: Exception) -> None:
        if option not in self._complaints:
            self._complaints.add(option)
            logger.error(
                "%s failed for a refusal (%r), which is not affected; further failures are not logged.", option, error
            )


def _function(option: str, value: Any, what: str) -> Any:
    """A function that may be called in the middle of a request, or ``None``."""
    if value is None or (callable(value) and not inspect.iscoroutinefunction(value)):
        return value
    problem = "is a coroutine function, which no refusal waits for" if callable(value) else "cannot be called"
    raise ConfigurationError(f"{option}={value!r} {problem}; give {what}.")


def _encoded(body: Body) -> tuple[str, bytes]:
    if isinstance(body, bytes):
        return "application/octet-stream", body
    try:
        if isinstance(body, str):
            return "text/plain; charset=utf-8", body.encode()
        return "application/json", json.dumps(dict(body)).encode()
    except (TypeError, ValueError) as error:
        problem = f"The body {body!r} cannot be sent ({error}); give what UTF-8 or JSON can hold."
        raise ConfigurationError(problem) from None
