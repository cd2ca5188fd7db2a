"""What is the same under every adapter: which answer a refused request gets, who is told, and who passes."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import httpx
import pytest
from flask import Flask, request
from machine import MIB, Service
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from resource_monitor.admission import Reason
from resource_monitor.middleware import (
    MemoryBackpressure,
    MemoryBackpressureMiddleware,
    Shed,
    ShedResponse,
    Statistics,
    WSGIMemoryBackpressureMiddleware,
    readings,
)

METHODS = ["GET", "POST", "OPTIONS", "HEAD"]
PREFLIGHT = {"origin": "https://shop.example", "access-control-request-method": "PUT"}


@pytest.fixture(autouse=True)
def _no_real_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that runs the tests is spared the guard; the apps raise what it would make CPython raise."""
    monkeypatch.setattr(readings, "ensure_installed", lambda monitor: None)


class Answers(Protocol):
    """An app behind an adapter: ``/`` answers, ``/lose`` runs out of memory, ``/upload`` reads its body."""

    def __call__(self, method: str, path: str = "/", **request: Any) -> httpx.Response: ...

    def statistics(self) -> Statistics: ...

    def chunked(self, body: bytes) -> Any:
        """A body without announced length."""


class Starlettes:
    def __init__(self, before_reading: Callable[[], object] = lambda: None, **options: Any) -> None:
        async def answer(request: Request) -> Response:
            if request.url.path == "/lose":
                raise MemoryError
            before_reading()
            return PlainTextResponse(str(len(await request.body())))

        app = Starlette(routes=[Route("/{path:path}", answer, methods=METHODS)])
        self.app = MemoryBackpressureMiddleware(app, **options)
        self.statistics = self.app.statistics

    def __call__(self, method: str, path: str = "/", **request: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
                return await client.request(method, path, **request)

        return asyncio.run(ask())

    async def chunked(self, body: bytes) -> Any:
        yield body


class WSGIs:
    def __init__(self, before_reading: Callable[[], object] = lambda: None, **options: Any) -> None:
        def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            if environ["PATH_INFO"] == "/lose":
                raise MemoryError
            before_reading()
            length = len(environ["wsgi.input"].read())
            start_response("200 OK", [("content-type", "text/plain")])
            return [str(length).encode()]

        self.app: Any = WSGIMemoryBackpressureMiddleware(answer, **options)
        self.statistics: Callable[[], Statistics] = self.app.statistics

    def __call__(self, method: str, path: str = "/", **request: Any) -> httpx.Response:
        with httpx.Client(transport=httpx.WSGITransport(self._serve), base_url="http://shop") as client:
            return client.request(method, path, **request)

    def chunked(self, body: bytes) -> Any:
        yield body

    def _serve(self, environ: dict[str, Any], start_response: Any) -> Any:
        # as servers say that read chunked bodies: there is an end to them
        return self.app({**environ, "wsgi.input_terminated": True}, start_response)


class Flasks(WSGIs):
    def __init__(self, before_reading: Callable[[], object] = lambda: None, **options: Any) -> None:
        self.app = Flask("shop")

        def answer(path: str) -> str:
            if path == "lose":
                raise MemoryError
            before_reading()
            return str(len(request.get_data()))

        rule: dict[str, Any] = {"view_func": answer, "methods": METHODS, "provide_automatic_options": False}
        self.app.add_url_rule("/", "root", defaults={"path": ""}, **rule)
        self.app.add_url_rule("/<path:path>", "path", **rule)
        MemoryBackpressure(self.app, **options)
        self.statistics = lambda: MemoryBackpressure.statistics(self.app)


@pytest.fixture(params=[Starlettes, WSGIs, Flasks])
def wrap(request: pytest.FixtureRequest, service: Service) -> Callable[..., Answers]:
    return lambda *given, **options: request.param(*given, monitor=service.monitor, allocation_guard=True, **options)


Wrap = Callable[..., Answers]


# --- which answer ---


@pytest.mark.parametrize("path", ["/", "/lose"])
def test_the_answer_is_json_or_text_as_the_client_takes_it(wrap: Wrap, service: Service, path: str) -> None:
    app = wrap()
    if path == "/":
        service.fill()
    for accept, expected in [
        ("*/*", "application/problem+json"),
        ("text/html, */*;q=0.1", "application/problem+json"),
        ("text/html", "text/plain; charset=utf-8"),
        ("application/json;q=0, text/html", "text/plain; charset=utf-8"),
    ]:
        answer = app("GET", path, headers={"accept": accept})
        assert (answer.status_code, answer.headers["content-type"]) == (503, expected)
        assert answer.headers["vary"] == "accept"
        assert int(answer.headers["content-length"]) == len(answer.content) > 0


def test_head_has_the_length_of_what_get_is_answered(wrap: Wrap, service: Service) -> None:
    app = wrap()
    service.fill()
    for accept in ("application/json", "text/plain"):
        got = app("GET", headers={"accept": accept})
        head = app("HEAD", headers={"accept": accept})
        assert head.content == b""
        assert head.headers["content-length"] == got.headers["content-length"]


def test_429_where_it_is_asked_for(wrap: Wrap, service: Service, caplog: pytest.LogCaptureFixture) -> None:
    app = wrap(status=429)
    assert app("GET", "/lose").status_code == 429
    service.fill()
    answer = app("GET")
    assert (answer.status_code, answer.json()["title"]) == (429, "Too Many Requests")
    assert "requests are answered 429 until there is room again." in caplog.text


@pytest.mark.parametrize("path", ["/", "/lose"])
def test_ones_own_answer_is_the_same_everywhere(wrap: Wrap, service: Service, path: str) -> None:
    app = wrap(
        response=lambda shed: ShedResponse(
            {"sorry": shed.path, "for": shed.method}, headers={"X-Reason": shed.reason, "Retry-After": "77"}
        )
    )
    if path == "/":
        service.fill()
    answer = app("GET", path)
    assert answer.status_code == 503
    assert answer.json() == {"sorry": path, "for": "GET"}
    assert answer.headers["x-reason"] == "memory"
    assert answer.headers.get_list("retry-after") == ["77"]
    assert answer.headers["content-type"] == "application/json"
    assert "vary" not in answer.headers


def test_ones_own_prepared_answer_is_sent_for_want_of_memory_alone(wrap: Wrap, service: Service) -> None:
    app = wrap(response=b"sorry", max_body=5)
    assert app("GET", "/lose").content == b"sorry"
    large = app("POST", "/upload", content=b"larger")
    assert (large.status_code, large.json()["title"]) == (413, "Content Too Large")
    service.fill()
    assert app("GET").content == b"sorry"


# --- who is told ---


def test_every_refusal_is_told_of_with_the_time_that_its_client_was_given(wrap: Wrap, service: Service) -> None:
    told: list[Shed] = []
    app = wrap(on_shed=told.append, retry_after=50, max_body=5)
    assert app("GET").status_code == 200
    large = app("POST", "/upload", content=b"larger")
    lost = app("GET", "/lose")
    service.fill()
    refused = app("DELETE", "/cart")
    assert [answer.status_code for answer in (large, lost, refused)] == [413, 503, 503]
    assert told == [
        Shed(Reason.TOO_LARGE, "POST", "/upload", 413, None),
        Shed(Reason.MEMORY, "GET", "/lose", 503, int(lost.headers["retry-after"]), started=True),
        Shed(Reason.MEMORY, "DELETE", "/cart", 503, int(refused.headers["retry-after"])),
    ]
    assert app.statistics().shed == 2
    assert app.statistics().wasted == 1


def test_a_body_that_turns_out_too_large_is_told_of_once(wrap: Wrap) -> None:
    told: list[Shed] = []
    app = wrap(on_shed=told.append, max_body=5)
    answer = app("POST", "/upload", content=app.chunked(b"larger"))
    assert answer.status_code == 413
    assert told == [Shed(Reason.TOO_LARGE, "POST", "/upload", 413, None, started=True)]


def test_a_body_that_finds_no_room_is_told_of_once(wrap: Wrap, service: Service) -> None:
    told: list[Shed] = []
    app = wrap(lambda: service.use(256 * MIB), on_shed=told.append, body_timeout=0)
    answer = app("POST", "/upload", content=b"x" * 100_000)
    assert answer.status_code == 503
    assert told == [Shed(Reason.BODY, "POST", "/upload", 503, int(answer.headers["retry-after"]), started=True)]
    assert (app.statistics().shed, app.statistics().wasted) == (1, 1)


def test_in_a_dry_run_what_would_be_refused_is_told_of(wrap: Wrap, service: Service) -> None:
    told: list[Shed] = []
    app = wrap(on_shed=told.append, dry_run=True)
    service.fill()
    assert app("GET").status_code == 200
    assert [shed.reason for shed in told] == [Reason.MEMORY]


def test_people_who_fail_break_no_refusal(wrap: Wrap, service: Service, caplog: pytest.LogCaptureFixture) -> None:
    def fail(shed: Shed) -> Any:
        raise MemoryError("secret")

    app = wrap(on_shed=fail, response=fail)
    service.fill()
    for _ in range(2):
        answer = app("GET")
        assert (answer.status_code, answer.json()["status"]) == (503, 503)
        assert "secret" not in json.dumps(dict(answer.headers)) + answer.text
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 2
    assert app.statistics().in_flight == 0


# --- who passes ---


def test_what_a_browser_asks_before_a_request_passes(wrap: Wrap, service: Service) -> None:
    app = wrap(max_in_flight=1)
    service.fill()
    assert app("OPTIONS", headers=PREFLIGHT).status_code == 200
    assert app.statistics().exempt == 1
    assert app.statistics().in_flight == 0


@pytest.mark.parametrize("missing", sorted(PREFLIGHT))
def test_other_options_requests_do_not(wrap: Wrap, service: Service, missing: str) -> None:
    app = wrap()
    service.fill()
    headers = {name: value for name, value in PREFLIGHT.items() if name != missing}
    assert app("OPTIONS", headers=headers).status_code == 503


def test_nothing_else_passes_for_a_preflight(wrap: Wrap, service: Service) -> None:
    app = wrap()
    service.fill()
    assert app("GET", headers=PREFLIGHT).status_code == 503
    assert app("OPTIONS", headers=PREFLIGHT, content=b"with a body").status_code == 503


def test_paths_are_compared_as_texts(wrap: Wrap, service: Service) -> None:
    """WSGI hands them on byte for byte."""
    app = wrap(exempt=["/größe/*"])
    service.fill()
    assert app("GET", "/größe/ü").status_code == 200
    assert app("GET", "/grösse").status_code == 503


def test_a_callable_that_fails_exempts_nothing(wrap: Wrap, service: Service) -> None:
    app = wrap(exempt=lambda path: path / 0)
    assert app("GET").status_code == 200
    service.fill()
    assert app("GET", "/livez").status_code == 503
