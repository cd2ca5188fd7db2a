"""The adapters among other people's middlewares, one above and one below at least, and below mount points."""

import asyncio
import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware as FastAPICORS
from flask import Flask, session
from machine import Service
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from whitenoise import WhiteNoise

from resource_monitor.middleware import (
    MemoryBackpressure,
    MemoryBackpressureMiddleware,
    Statistics,
    WSGIMemoryBackpressureMiddleware,
)

ORIGIN = "https://shop.example"
LONG = "hello" * 1000


def over_asgi(app: Any, method: str, path: str, **request: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
            return await client.request(method, path, **request)

    return asyncio.run(ask())


def over_wsgi(app: Any, method: str, path: str, **request: Any) -> httpx.Response:
    with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://shop") as client:
        return client.request(method, path, **request)


class Found:
    """Finds the adapter that a framework makes, to read its counts."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.made: list[MemoryBackpressureMiddleware] = []

    def __call__(self, app: Any, **options: Any) -> MemoryBackpressureMiddleware:
        self.made.append(MemoryBackpressureMiddleware(app, monitor=self.service.monitor, **options))
        return self.made[-1]

    def statistics(self) -> Statistics:
        [middleware] = self.made
        return middleware.statistics()


@pytest.fixture
def found(service: Service) -> Found:
    return Found(service)


async def long(request: Request) -> Response:
    request.session["seen"] = True
    return PlainTextResponse(LONG)


async def fail(request: Request) -> Response:
    raise RuntimeError


def starlette(found: Found) -> Starlette:
    return Starlette(
        routes=[Route("/", long), Route("/fail", fail)],
        middleware=[
            Middleware(CORSMiddleware, allow_origins=[ORIGIN], allow_methods=["PUT"]),
            Middleware(found),
            Middleware(GZipMiddleware),
            Middleware(SessionMiddleware, secret_key="secret"),
        ],
    )


def test_with_room_what_is_below_answers_as_without_us(found: Found) -> None:
    answer = over_asgi(starlette(found), "GET", "/", headers={"origin": ORIGIN, "accept-encoding": "gzip"})
    assert answer.text == LONG
    assert answer.headers["content-encoding"] == "gzip"
    assert "session=" in answer.headers["set-cookie"]
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert found.statistics().in_flight == 0


def test_a_refusal_is_readable_for_other_origins(found: Found, service: Service) -> None:
    app = starlette(found)
    service.fill()
    answer = over_asgi(app, "GET", "/", headers={"origin": ORIGIN, "accept-encoding": "gzip"})
    assert answer.status_code == 503
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert {name.strip().lower() for name in answer.headers["vary"].split(",")} == {"accept", "origin"}
    assert "content-encoding" not in answer.headers
    assert "set-cookie" not in answer.headers
    assert answer.json()["status"] == 503
    assert found.statistics().in_flight == 0


@pytest.mark.parametrize("above", [True, False])
def test_preflights_are_answered_by_the_middleware_for_them_wherever_it_is(service: Service, above: bool) -> None:
    preflight = {"origin": ORIGIN, "access-control-request-method": "PUT"}
    app = FastAPI()
    own: tuple[Any, dict[str, Any]] = (MemoryBackpressureMiddleware, {"monitor": service.monitor})
    cors: tuple[Any, dict[str, Any]] = (FastAPICORS, {"allow_origins": [ORIGIN], "allow_methods": ["PUT"]})
    for kind, options in (own, cors) if above else (cors, own):
        app.add_middleware(kind, **options)
    service.fill()
    answer = over_asgi(app, "OPTIONS", "/", headers=preflight)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert over_asgi(app, "PUT", "/", headers=preflight).status_code == 503


def test_an_app_that_fails_below_others_leaves_nothing_in_flight(found: Found) -> None:
    app = starlette(found)
    with pytest.raises(RuntimeError):
        over_asgi(app, "GET", "/fail")
    assert (found.statistics().admitted, found.statistics().in_flight) == (1, 0)


def test_a_compressor_above_leaves_a_refusal_whole(service: Service) -> None:
    """What it would compress is too short for it, unless it is told to."""
    app = GZipMiddleware(MemoryBackpressureMiddleware(None, monitor=service.monitor), minimum_size=1)  # type: ignore[arg-type]
    service.fill()
    answer = over_asgi(app, "GET", "/", headers={"accept-encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.json()["status"] == 503
    assert answer.headers["vary"].lower().replace(" ", "") == "accept,accept-encoding"


def test_traces_above_see_refusals_and_traces_below_do_not(service: Service) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))

    def traced(app: Any, name: str) -> Any:
        return OpenTelemetryMiddleware(
            app,
            default_span_details=lambda scope: (name, {}),
            tracer_provider=provider,
            exclude_spans=["send", "receive"],
        )

    inner = Starlette(routes=[Route("/", lambda request: PlainTextResponse(LONG))])
    middleware = MemoryBackpressureMiddleware(traced(inner, "below"), monitor=service.monitor)
    app = traced(middleware, "above")
    assert over_asgi(app, "GET", "/").text == LONG
    assert {span.name for span in spans.get_finished_spans()} == {"below", "above"}
    spans.clear()
    service.fill()
    assert over_asgi(app, "GET", "/").status_code == 503
    [span] = spans.get_finished_spans()
    assert span.name == "above"
    assert span.attributes is not None
    assert span.attributes["http.status_code"] == 503
    assert middleware.statistics().in_flight == 0


@pytest.mark.parametrize("pattern", ["/alive", "/shop/alive", "/shop/alive/"])
@pytest.mark.parametrize("path", ["/shop/alive", "/shop/alive/"])
def test_paths_are_exempt_within_a_mounted_app(service: Service, pattern: str, path: str) -> None:
    inner = Starlette(routes=[Route("/{path:path}", lambda request: PlainTextResponse("hello"))])
    mounted = MemoryBackpressureMiddleware(inner, exempt=[pattern], monitor=service.monitor)
    app = Starlette(routes=[Mount("/shop", mounted)])
    service.fill()
    assert over_asgi(app, "GET", path).text == "hello"
    assert over_asgi(app, "GET", "/shop/cart").status_code == 503


@pytest.mark.parametrize("pattern", ["/shop/alive", "/shop/*"])
def test_paths_of_mounted_apps_are_exempt_around_them(service: Service, pattern: str) -> None:
    inner = Starlette(routes=[Route("/{path:path}", lambda request: PlainTextResponse("hello"))])
    app = MemoryBackpressureMiddleware(
        Starlette(routes=[Mount("/shop", inner)]), exempt=[pattern], monitor=service.monitor
    )
    service.fill()
    assert over_asgi(app, "GET", "/shop/alive").text == "hello"
    assert over_asgi(app, "GET", "/alive").status_code == 503


# --- WSGI ---


def flask(service: Service, **options: Any) -> Flask:
    app = Flask("shop")
    app.secret_key = "secret"

    def hello() -> str:
        session["seen"] = True
        return "hello"

    app.add_url_rule("/", "hello", hello)
    app.add_url_rule("/alive", "alive", lambda: "alive")
    MemoryBackpressure(app, monitor=service.monitor, **options)
    return app


def compressed(app: Any) -> Any:
    """A compressor, as there are several for WSGI."""

    def compress(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        started: list[Any] = []
        response = app(environ, lambda *arguments: started.append(arguments))
        try:
            body = gzip.compress(b"".join(response))
        finally:
            getattr(response, "close", lambda: None)()
        headers = [(name, value) for name, value in started[0][1] if name.lower() != "content-length"]
        start_response(started[0][0], [*headers, ("content-encoding", "gzip"), ("content-length", str(len(body)))])
        return [body]

    return compress


def test_flask_below_a_proxy_fix_and_over_a_session(service: Service) -> None:
    app = flask(service)
    app.wsgi_app = ProxyFix(app.wsgi_app, x_prefix=1)  # type: ignore[method-assign]
    forwarded = {"x-forwarded-for": "10.0.0.1", "x-forwarded-prefix": "/prefix"}
    answer = over_wsgi(app, "GET", "/", headers=forwarded)
    assert (answer.text, "session=" in answer.headers["set-cookie"]) == ("hello", True)
    service.fill()
    answer = over_wsgi(app, "GET", "/", headers=forwarded)
    assert answer.status_code == 503
    assert "set-cookie" not in answer.headers
    assert over_wsgi(app, "GET", "/livez", headers=forwarded).status_code == 404
    assert MemoryBackpressure.statistics(app).in_flight == 0


def test_files_are_sent_above_us_and_below_us(service: Service, tmp_path: Path) -> None:
    (tmp_path / "x.css").write_text("body {}")

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("content-type", "text/plain")])
        return [LONG.encode()]

    middleware = WSGIMemoryBackpressureMiddleware(
        compressed(WhiteNoise(app, root=tmp_path, prefix="below")), monitor=service.monitor
    )
    stack = WhiteNoise(middleware, root=tmp_path, prefix="above")
    assert over_wsgi(stack, "GET", "/below/x.css").text == "body {}"
    answer = over_wsgi(stack, "GET", "/")
    assert (answer.text, answer.headers["content-encoding"]) == (LONG, "gzip")
    service.fill()
    assert over_wsgi(stack, "GET", "/above/x.css").text == "body {}"
    answer = over_wsgi(stack, "GET", "/below/x.css")
    assert answer.status_code == 503
    assert "content-encoding" not in answer.headers
    assert middleware.statistics().in_flight == 0


@pytest.mark.parametrize("pattern", ["/alive", "/shop/alive", "/shop/alive/", "/shop/al*"])
def test_paths_of_flask_are_exempt_below_a_dispatcher(service: Service, pattern: str) -> None:
    app = DispatcherMiddleware(lambda environ, start_response: [], {"/shop": flask(service, exempt=[pattern])})
    service.fill()
    assert over_wsgi(app, "GET", "/shop/alive").text == "alive"
    assert over_wsgi(app, "GET", "/shop/").status_code == 503


@pytest.mark.parametrize("pattern", ["/shop/alive", "/shop/*"])
def test_paths_below_a_dispatcher_are_exempt_around_it(service: Service, pattern: str) -> None:
    inner = Flask("shop")
    inner.add_url_rule("/alive", "alive", lambda: "alive")
    app = WSGIMemoryBackpressureMiddleware(
        DispatcherMiddleware(Flask("root"), {"/shop": inner}), exempt=[pattern], monitor=service.monitor
    )
    service.fill()
    assert over_wsgi(app, "GET", "/shop/alive").text == "alive"
    assert over_wsgi(app, "GET", "/alive").status_code == 503
