"""The WSGI adapter: for Flask, Django and every other WSGI app (PEP 3333).

Owns the answer; ``wsgi_waiting`` owns the waiting before it, ``wsgi_input`` the reading of the body. A request without
a body that starts under a grant is ``_native/turn``'s, and comes back here only when it fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Unpack

from resource_monitor._native import _turn
from resource_monitor.admission import Reason
from resource_monitor.guard import thread_refusals
from resource_monitor.middleware.admitted import ADMITTED, Admitted
from resource_monitor.middleware.asking import Ask
from resource_monitor.middleware.bodies import Body, BodyTooLarge, Intake, most_body
from resource_monitor.middleware.environment import settle
from resource_monitor.middleware.gate import Gate
from resource_monitor.middleware.losses import caused_by, let_go, lost_to_memory
from resource_monitor.middleware.options import Options
from resource_monitor.middleware.refusing import Shed
from resource_monitor.middleware.responses import Answer
from resource_monitor.middleware.statistics import Statistics
from resource_monitor.middleware.steps import app_runs
from resource_monitor.middleware.wsgi_input import (
    Connection,
    Input,
    Limited,
    PromisedInput,
    Readable,
    body_of,
    connection_of,
    linger,
)
from resource_monitor.middleware.wsgi_waiting import WaitingThreads

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]

# PEP 3333 wants the error that a second start_response replaces an answer for; what it held is let go already.
_REPLACING = (MemoryError, MemoryError(), None)

_NO_BODY = Body(0)


class GatedApp(_turn.Gated):
    """``app`` behind ``gate``."""

    def __init__(self, app: WSGIApp, gate: Gate) -> None:
        self.app = app
        self.gate = gate
        self._threads = WaitingThreads(gate)
        most, serve = most_body(gate.max_body), self._threads.serve
        self.use(gate.turns, self._ask, self._adopt, self._question, serve, gate.renew, PromisedInput, most)

    def _ask(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        gate, body = self.gate, body_of(environ)
        if body.exceeds(gate.max_body) and not gate.dry_run:
            shed = gate.count_refusal(self._question(environ, body), Reason.TOO_LARGE)
            return _refused(self.answer(shed, environ), body, environ, start_response)
        method, path, mount = (
            environ.get("REQUEST_METHOD", ""),
            environ.get("PATH_INFO", ""),
            environ.get("SCRIPT_NAME", ""),
        )
        if gate.turns.refuse(method, _text(path), _text(mount), body.rest):
            unasked = gate.refusals.for_memory(environ.get("HTTP_ACCEPT"))
            return _refused(unasked, body, environ, start_response)
        ask = self._question(environ, body)
        answer = self._threads.enter(ask)
        admitted = answer if isinstance(answer, Admitted) else gate.refuse(ask, answer)
        if isinstance(admitted, Shed):
            return _refused(self.answer(admitted, environ), body, environ, start_response)
        try:
            response = _Response(self, admitted, body, environ, start_response)
            return response.begin(self.app)
        except BaseException:
            self.left(admitted)
            raise

    def _question(self, environ: Environ, body: Body = _NO_BODY) -> Ask:
        method = environ.get("REQUEST_METHOD", "")
        return self.gate.ask(
            environ,
            method,
            _text(environ.get("PATH_INFO", "")),
            _text(environ.get("SCRIPT_NAME", "")),
            body.rest,
            preflight=method == "OPTIONS" and body.ended and _is_preflight(environ),
        )

    def _adopt(self, begun: _turn.Response) -> _Response:
        """What goes on with a response that may have to be refused after all."""
        response = _Response(self, begun, _NO_BODY, begun.environ, begun.start_response)
        response.takes_over(begun)
        return response

    def statistics(self) -> Statistics:
        """What this middleware did so far."""
        return self.gate.statistics()

    def answer(self, shed: Shed, environ: Environ) -> Answer:
        """The refusal for the request in ``environ``."""
        return self.gate.refusals.answer(shed, environ.get("HTTP_ACCEPT"))

    def left(self, admitted: Admitted | _turn.Response) -> None:
        """The request is over; however often this is said."""
        admitted.leave()
        self._threads.serve()


class WSGIMemoryBackpressureMiddleware(GatedApp):
    """Answers 503 before ``app`` runs while there is no memory for one more request, and in place of its answer when
    it ran out of memory before the response started.

    The keyword options are those of :class:`~resource_monitor.middleware.options.Options`. Raises
    :class:`~resource_monitor.ConfigurationError` for a value that cannot be meant, and
    :class:`~resource_monitor.GuardError` when the allocation guard was asked for and cannot be installed.
    """

    def __init__(self, app: WSGIApp, **options: Unpack[Options]) -> None:
        settled, names = settle(options)
        super().__init__(app, Gate(names, **settled))


class _Response:
    """The app's response; lets go of the request when the server closes it, once however often that is.

    As long as the server was given nothing of the body, a refusal takes the place of a ``MemoryError`` and of a body
    that was cut, and of a framework's 500 for them: frameworks answer after they handled the error, so what tells is
    that an allocation was refused on this thread since the request began, or that its body was cut.
    """

    def __init__(
        self,
        middleware: GatedApp,
        admitted: Admitted | _turn.Response,
        body: Body,
        environ: Environ,
        start_response: StartResponse,
    ) -> None:
        self._middleware = middleware
        self._admitted = admitted
        self._environ = environ
        self._start_response = start_response
        self._refusals = thread_refusals()
        self._pieces: Iterable[bytes] = ()
        self._close: Callable[[], object] | None = None
        self._closed = self._began = self._given = False
        self._shed: Shed | None = None
        self._input: Limited | None = None
        environ[ADMITTED] = admitted
        if not body.ended and "wsgi.input" in environ and isinstance(admitted, Admitted):
            intake = Intake(middleware.gate, admitted.ask, admitted, body)
            self._input = environ["wsgi.input"] = Input(environ["wsgi.input"], body.announced, intake)

    def takes_over(self, begun: _turn.Response) -> None:
        """Go on as ``begun``, which goes on with this."""
        self._refusals, self._input = begun.refusals, begun.input
        self._pieces, self._close = begun.pieces or (), begun.close_pieces
        self._began, self._given = begun.began, begun.given

    def begin(self, app: WSGIApp) -> Iterable[bytes]:
        """Call ``app``; the iterable for the server."""
        try:
            with app_runs():
                self._pieces = app(self._environ, self._start)
            self._close = getattr(self._pieces, "close", None)
        except BaseException as error:
            if not self._withhold(error):
                raise
        if self._shed is None:
            wrapper = self._environ.get("wsgi.file_wrapper")
            if isinstance(wrapper, type) and isinstance(self._pieces, wrapper) and self._hand_over(self._pieces):
                return self._pieces
            if isinstance(self._pieces, Sized):
                return _SizedResponse(self, self._pieces)
        return self

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        close, self._close, self._pieces = self._close, None, ()  # a file that was handed over refers to us
        try:
            if close is not None:
                close()
        finally:
            self._middleware.left(self._admitted)
            if self._input is not None and self._refused:
                self._input.linger(connection_of(self._environ))

    def __iter__(self) -> Iterator[bytes]:
        try:
            pieces = iter(self._pieces)
            while self._shed is None:
                with app_runs():
                    piece = next(pieces, None)
                if piece is None or self._shed is not None:
                    break
                if piece and not self._given:
                    self._give()
                yield piece
        except BaseException as error:
            if not self._withhold(error):
                raise
        if self._shed is not None:
            answer = self._middleware.answer(self._shed, self._environ)
            yield from _answer(answer, self._environ, self._start_response, replacing=self._began)
        if self._refused:
            self.close()  # what was given is sent by now (PEP 3333), and some servers would read the rest into memory

    @property
    def _refused(self) -> bool:
        """Whether the rest of the request is of no use to anyone."""
        cut = self._input is not None and self._input.cut is not None
        return cut or self._admitted.lost or self._shed is not None

    def _start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        if status.startswith("500") and not self._given:
            error = exc_info[1] if exc_info else sys.exception()
            self._shed = self._shed_for(error) or self._behind_a_500()
            if self._shed is not None:
                let_go(error)
                return _discard
        self._began = True
        write: Callable[[bytes], object] = self._start_response(status, headers, *([exc_info] if exc_info else []))

        def written(data: bytes) -> object:
            self._give()
            return write(data)

        return written

    def _give(self) -> None:
        self._given = True
        self._admitted.answered()

    def _hand_over(self, file: Any) -> bool:
        """Whether the server gets its own file wrapper back, which it may send without reading it; with the wrapper's
        ``close()``, which is called once by whoever sends it, the request ends."""
        try:
            file.close = self.close
        except (AttributeError, TypeError):  # a type written in C
            return False
        self._give()
        return True

    def _shed_for(self, error: BaseException | None) -> Shed | None:
        gate = self._middleware.gate
        if caused_by(error, BodyTooLarge):
            return gate.too_large(self._admitted)
        return gate.lost(self._admitted) if lost_to_memory(error) else None

    def _behind_a_500(self) -> Shed | None:
        gate = self._middleware.gate
        if self._input is not None and self._input.cut is BodyTooLarge:
            return gate.too_large(self._admitted)
        if (self._input is not None and self._input.cut) or thread_refusals() != self._refusals:
            return gate.lost(self._admitted)
        return None

    def _withhold(self, error: BaseException) -> bool:
        """Whether a refusal takes the place of what the app raised."""
        shed = self._shed_for(error)
        if shed is None:
            return False
        self._shed = shed
        let_go(error)
        return not self._given


class _SizedResponse:
    """A response of known length, from which servers conclude that of a body in one piece (PEP 3333)."""

    def __init__(self, response: _Response, pieces: Sized) -> None:
        self._response = response
        self._pieces = pieces
        self.close = response.close

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._response)

    def __len__(self) -> int:
        return len(self._pieces)


class _Lingering:
    """The answer to a request whose ``body`` is read and dropped once the answer is sent: servers send what they were
    given before they ask for more (PEP 3333), and the head at the latest before they close."""

    def __init__(
        self, pieces: list[bytes], body: Readable, announced: int | None, connection: Connection | None
    ) -> None:
        self._pieces = pieces
        self._body = body
        self._announced = announced
        self._connection = connection

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces
        if any(self._pieces):  # else the head is sent once there is nothing more
            self.close()

    def close(self) -> None:
        linger(self._body, self._announced, self._connection)
        self._announced = 0


def _refused(answer: Answer, body: Body, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    unread, connection = environ.get("wsgi.input"), connection_of(environ)
    if unread is None or body.ended:
        return _answer(answer, environ, start_response)
    if "HTTP_EXPECT" in environ:
        # reading makes some servers send a 100 (Continue), which must not come behind the answer
        linger(unread, body.announced, connection)
        return _answer(answer, environ, start_response)
    return _Lingering(_answer(answer, environ, start_response), unread, body.announced, connection)


def _answer(answer: Answer, environ: Environ, start_response: StartResponse, *, replacing: bool = False) -> list[bytes]:
    start_response(answer.wsgi_status, answer.wsgi_headers(), *([_REPLACING] if replacing else []))
    # not without a piece, since some servers send the head with the first one
    return [b"" if environ.get("REQUEST_METHOD") == "HEAD" else answer.body]


def _is_preflight(environ: Environ) -> bool:
    return "HTTP_ORIGIN" in environ and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ


def _text(path: str) -> str:
    """A path that PEP 3333 hands on byte for byte, as the text that it is; what is none stays as it is."""
    if path.isascii():
        return path
    try:
        return path.encode("latin-1").decode()
    except UnicodeError:
        return path


def _discard(data: bytes) -> None:
    """The write() of an error page that nobody will see."""
