"""The endpoint as ASGI, WSGI and mounted app: what it follows, what it tells, and what it keeps for itself."""

import asyncio
import os
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from asgi_client import Client, Message, http
from flask import Flask
from machine import MIB, Clock, Holder, Service
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client as WSGIClient

from resource_monitor.admission import Pressure
from resource_monitor.errors import ConfigurationError, ProbeError
from resource_monitor.limits import UNBOUNDED
from resource_monitor.middleware import (
    HealthEndpoint,
    MemoryBackpressure,
    MemoryBackpressureMiddleware,
    WSGIMemoryBackpressureMiddleware,
)
from resource_monitor.middleware import gate as gate_module
from resource_monitor.middleware import health as health_module
from resource_monitor.middleware.gate import Gate
from resource_monitor.monitor import Reading


@pytest.fixture(autouse=True)
def _one_clock(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes for the gate when it does for the service."""
    monkeypatch.setattr(gate_module.time, "monotonic", service.clock)


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


class ASGIClient:
    """Asks an app without a server between them."""

    def __init__(self, app: Any, root_path: str = "") -> None:
        self.transport = httpx.ASGITransport(app, root_path=root_path)

    def get(self, path: str) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=self.transport, base_url="http://test") as client:
                return await client.get(path, follow_redirects=True)

        return asyncio.run(ask())


def make_flask() -> Flask:
    app = Flask("shop")
    app.add_url_rule("/", "hello", lambda: "hello")
    return app


class Probed:
    """A gate, and the endpoint that follows it, asked as a WSGI app."""

    def __init__(self, service: Service, **options: Any) -> None:
        self.service = service
        self.gate = Gate(monitor=service.monitor)
        self.endpoint = HealthEndpoint(self.gate, monitor=service.monitor, clock=service.clock, **options)
        self.client = WSGIClient(self.endpoint)

    def status(self, path: str = "/readyz") -> int:
        return self.client.get(path).status_code

    def shed(self) -> None:
        """Full, with a request that is refused, and room again."""
        self.service.fill()
        assert self.gate.enter("GET", "/") is None
        self.service.empty()
        self.service.clock.pass_(-10)  # as long as emptying takes


@pytest.fixture
def probed(service: Service) -> Probed:
    return Probed(service)


# --- readiness follows what it is told to follow ---


def test_it_is_ready_until_something_is_refused_and_after_the_dwell_again(probed: Probed, clock: Clock) -> None:
    assert probed.status() == 200
    probed.shed()
    assert probed.status() == 503
    clock.pass_(4.9)
    assert probed.status() == 503
    clock.pass_(0.2)
    assert probed.status() == 200


def test_the_dwell_can_be_set(service: Service, clock: Clock) -> None:
    probed = Probed(service, dwell=60)
    probed.shed()
    clock.pass_(59)
    assert probed.status() == 503
    clock.pass_(2)
    assert probed.status() == 200


def test_the_pressure_falls_though_nobody_asks_for_anything(probed: Probed, clock: Clock) -> None:
    probed.shed()
    assert probed.gate.statistics().pressure is Pressure.SHEDDING
    clock.pass_(1.5)
    assert probed.gate.statistics().pressure is Pressure.OK


def test_the_pressure_of_an_idle_service_that_stays_full_is_elevated(probed: Probed, service: Service) -> None:
    probed.shed()
    service.fill()
    assert probed.gate.statistics().pressure is Pressure.ELEVATED


def test_the_end_of_shedding_is_logged_though_nobody_asks_for_anything(
    probed: Probed, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "resource_monitor")
    probed.shed()
    clock.pass_(60)
    for _ in range(3):
        assert probed.status() == 200
    assert [record.getMessage() for record in caplog.records if "ended" in record.getMessage()] == [
        "Shedding ended: 224.0 MiB available."
    ]


def test_a_child_process_has_refused_nothing_yet(probed: Probed) -> None:
    probed.shed()
    assert probed.gate.statistics().refusal_age == 0
    child = os.fork()
    if not child:
        os._exit(0 if probed.gate.statistics().refusal_age is None else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_while_memory_cannot_be_read_and_all_is_refused_it_is_not_ready(service: Service) -> None:
    gate = Gate(monitor=service.monitor, on_probe_error="refuse")
    client = WSGIClient(HealthEndpoint(gate, monitor=service.monitor, clock=service.clock))
    service.break_probe()
    assert gate.enter("GET", "/") is None
    service.clock.pass_(100)
    assert client.get("/readyz").status_code == 503
    service.mend_probe()
    assert client.get("/readyz").status_code == 200


def test_while_memory_cannot_be_read_and_all_is_admitted_it_is_ready_again(probed: Probed, service: Service) -> None:
    probed.shed()
    service.break_probe()
    assert probed.status() == 200
    answer = probed.client.get("/readyz?verbose").get_json()
    assert (answer["pressure"], answer["memory"]) == ("ok", None)


def test_requests_that_were_too_large_say_nothing_of_readiness(service: Service) -> None:
    middleware = WSGIMemoryBackpressureMiddleware(make_flask().wsgi_app, monitor=service.monitor, max_body=1)
    assert WSGIClient(middleware).post("/", data=b"12345").status_code == 413
    assert WSGIClient(HealthEndpoint(middleware)).get("/readyz").status_code == 200


def test_in_a_dry_run_it_is_always_ready(service: Service) -> None:
    gate = Gate(monitor=service.monitor, dry_run=True)
    service.fill()
    admitted = gate.enter("GET", "/")
    assert admitted is not None
    assert gate.statistics().pressure is Pressure.SHEDDING
    endpoint = HealthEndpoint(gate, monitor=service.monitor, clock=service.clock)
    assert WSGIClient(endpoint).get("/readyz").status_code == 200
    admitted.leave()


# --- memory ---


def by_memory(service: Service, **options: Any) -> Callable[[], int]:
    client = WSGIClient(HealthEndpoint(monitor=service.monitor, clock=service.clock, **options))
    return lambda: client.get("/readyz").status_code


def test_without_anything_to_follow_memory_alone_decides(service: Service) -> None:
    status = by_memory(service)
    assert status() == 200
    service.use(241 * MIB)  # less than 16 MiB are left
    assert status() == 503
    service.use(239 * MIB)  # but less than 24
    assert status() == 503
    service.use(231 * MIB)
    assert status() == 200


@pytest.mark.parametrize(("enter", "exit"), [("25%", "50%"), (64 * MIB, "128MiB"), ("64MiB", "50%")])
def test_thresholds_are_bytes_or_shares_of_the_limit(service: Service, enter: Any, exit: Any) -> None:
    status = by_memory(service, enter=enter, exit=exit)
    found = []
    for left in (65, 63, 127, 129, 65, 63):
        service.use((256 - left) * MIB)
        found.append(status())
    assert found == [200, 503, 503, 200, 200, 503]


def test_thresholds_hold_besides_what_is_followed(service: Service) -> None:
    probed = Probed(service, enter="64MiB")
    service.use(200 * MIB)
    assert probed.gate.statistics().pressure is Pressure.OK
    assert probed.status() == 503


def test_after_shedding_there_may_have_to_be_more(service: Service) -> None:
    probed = Probed(service, exit="64MiB")
    service.use(200 * MIB)
    assert probed.status() == 200
    probed.shed()
    assert probed.status() == 503
    service.use(200 * MIB)
    assert probed.status() == 503
    service.use(190 * MIB)
    assert probed.status() == 200


def test_what_the_allocator_holds_unused_makes_nobody_unready(service: Service) -> None:
    service.monitor.allocator = Holder(service.machine, held=100 * MIB, tells=False)  # type: ignore[assignment]
    status = by_memory(service)
    service.use(250 * MIB)
    assert status() == 200


def test_memory_that_cannot_be_read_makes_nobody_unready(service: Service) -> None:
    status = by_memory(service)
    service.break_probe()
    assert status() == 200


def test_without_any_limit_it_is_ready(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.monitor, "tightest", lambda: UNBOUNDED)
    assert by_memory(service, enter="50%")() == 200


# --- liveness ---


@pytest.mark.parametrize("path", ["/livez", "/", "/livez/"])
def test_it_is_alive_whatever_happens(probed: Probed, service: Service, path: str) -> None:
    probed.shed()
    service.fill()
    answer = probed.client.get(path)
    assert (answer.status_code, answer.text) == (200, "ok\n")
    service.break_probe()
    assert probed.client.get(path).status_code == 200


def test_it_is_alive_also_in_detail(probed: Probed) -> None:
    probed.shed()
    answer = probed.client.get("/livez?verbose")
    assert (answer.status_code, answer.get_json()["status"]) == (200, "not ready")


# --- what is told ---


def test_without_verbose_no_figures_are_told(probed: Probed) -> None:
    assert probed.client.get("/readyz").data == b"ok\n"
    probed.shed()
    answer = probed.client.get("/readyz?quiet")
    assert (answer.status_code, answer.data) == (503, b"not ready\n")
    assert {name.title(): value for name, value in answer.headers.items()} == {
        "Content-Type": "text/plain; charset=utf-8",
        "Cache-Control": "no-store",
        "Content-Length": "10",
    }


def test_verbose_tells_people(probed: Probed, service: Service) -> None:
    admitted = probed.gate.enter("GET", "/")
    assert admitted is not None
    probed.shed()
    answer = probed.client.get("/readyz?verbose")
    assert (answer.status_code, answer.mimetype) == (503, "application/json")
    assert answer.headers["cache-control"] == "no-store"
    told = answer.get_json()
    assert told.pop("guard_refusals") >= 0
    assert told == {
        "status": "not ready",
        "memory": {"available": "224.0 MiB", "limit": "256.0 MiB", "where": "/sys/fs/cgroup/memory.max"},
        "pressure": "shedding",
        "in_flight": 1,
        "waiting": 0,
        "admitted": 1,
        "shed": {"memory": 1},
        "seconds_since_refusal": 0,
        "other_workers": 0,
    }
    admitted.leave()


def test_verbose_without_a_middleware_tells_of_memory(service: Service) -> None:
    client = WSGIClient(HealthEndpoint(monitor=service.monitor))
    assert set(client.get("/readyz?verbose=1").get_json()) == {"status", "memory", "guard_refusals"}


def test_without_any_limit_there_is_none_to_tell(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Reading(UNBOUNDED, UNBOUNDED, 0, None, None, None, 0.0)
    monkeypatch.setattr(service.monitor, "read", lambda: nothing)
    client = WSGIClient(HealthEndpoint(monitor=service.monitor))
    told = client.get("/readyz?verbose").get_json()
    assert told["memory"] == {"available": None, "limit": None, "where": None}


def test_verbose_can_be_switched_off(service: Service) -> None:
    probed = Probed(service, verbose=False)
    assert probed.client.get("/readyz?verbose").data == b"ok\n"
    assert probed.client.get("/livez?verbose").data == b"ok\n"


def test_other_paths_and_methods_are_none_of_its_business(probed: Probed) -> None:
    assert probed.status("/secrets") == 404
    assert probed.status("/livez/deep") == 404
    answer = probed.client.post("/readyz")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


def test_head_is_answered_without_a_body(probed: Probed) -> None:
    answer = probed.client.head("/readyz")
    assert (answer.status_code, answer.data, answer.headers["content-length"]) == (200, b"", "3")


# --- where it is put ---


def test_mounted_in_starlette_it_passes_the_middleware_that_it_follows(service: Service, clock: Clock) -> None:
    app = Starlette(routes=[Route("/", hello)])
    app.add_middleware(MemoryBackpressureMiddleware, monitor=service.monitor)
    app.mount("/health", HealthEndpoint(app, monitor=service.monitor, clock=clock))
    client = ASGIClient(app)
    assert client.get("/health/readyz").status_code == 200
    service.fill()
    assert client.get("/").status_code == 503
    assert client.get("/health/readyz").status_code == 503
    assert client.get("/health/livez").text == "ok\n"
    assert client.get("/health").text == "ok\n"
    for _ in range(6):
        clock.pass_(1)
        last = client.get("/health/readyz").status_code
    assert last == 200


def test_in_the_routes_of_starlette_it_follows_the_middleware_around(service: Service) -> None:
    routes = [Route("/", hello)]
    middleware = MemoryBackpressureMiddleware(Starlette(routes=routes), monitor=service.monitor)
    middleware.app.routes.append(Mount("/health", HealthEndpoint(middleware)))  # type: ignore[attr-defined]
    client = ASGIClient(middleware)
    assert client.get("/health/readyz?verbose").json()["admitted"] == 0
    service.fill()
    assert client.get("/").status_code == 503
    assert client.get("/health/readyz").status_code == 503


def test_behind_a_proxy_that_cuts_a_prefix_off_it_is_found(service: Service) -> None:
    app = Starlette(routes=[Mount("/health", HealthEndpoint(monitor=service.monitor))])
    client = ASGIClient(app, root_path="/api")
    for path in ("/health/readyz", "/health/livez", "/health/", "/api/health/readyz", "/api/health/"):
        assert client.get(path).text == "ok\n"
    assert client.get("/health/none").status_code == 404


def test_dispatched_beside_a_flask_app_it_follows_its_extension(service: Service) -> None:
    app = make_flask()
    endpoint = HealthEndpoint(app, monitor=service.monitor, clock=service.clock)
    MemoryBackpressure(app, monitor=service.monitor)
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/health": endpoint})  # type: ignore[method-assign]
    client = app.test_client()
    assert client.get("/health/readyz").status_code == 200
    service.fill()
    assert client.get("/").status_code == 503
    assert client.get("/health/readyz").status_code == 503
    assert [client.get(path).status_code for path in ("/health", "/health/", "/health/livez")] == [200] * 3


def asgi(scope: Message, *messages: Message) -> list[Message]:
    async def run() -> list[Message]:
        client = Client(HealthEndpoint(), scope, *messages)
        await client.task
        return client.sent

    return asyncio.run(run())


def test_alone_under_a_server_it_starts_and_ends() -> None:
    sent = asgi({"type": "lifespan"}, {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"})
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_alone_under_a_server_it_answers() -> None:
    start, body = asgi(http(path="/livez"))
    assert (start["status"], body["body"]) == (200, b"ok\n")
    assert (b"content-length", b"3") in start["headers"]
    start, body = asgi(http("HEAD", path="/livez"))
    assert (start["status"], body["body"]) == (200, b"")


def test_websockets_are_closed() -> None:
    assert asgi({"type": "websocket", "path": "/livez"}) == [{"type": "websocket.close"}]


def test_what_it_does_not_know_it_leaves_alone() -> None:
    assert asgi({"type": "webtransport"}) == []


def test_servers_that_take_it_for_an_older_kind_of_app_are_served() -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("nothing should be received")

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(HealthEndpoint()(http(path="/livez"))(receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 200


# --- values that cannot be meant ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            ({"dwell": dwell}, f"dwell={dwell!r} is no time to dwell; give seconds, from 0 to 3600.")
            for dwell in (-1, 3601, True, "5", None, float("nan"))
        ),
        (
            {"enter": "lots"},
            "enter: 'lots' is not a size; give bytes as a number, a size such as \"64MiB\", or a share of the limit "
            'such as "5%".',
        ),
        (
            {"exit": -1},
            'exit: -1 is negative; give bytes as a number, a size such as "64MiB", or a share of the limit such as '
            '"5%".',
        ),
        (
            {"enter": "64MiB", "exit": "10%"},
            "exit='10%' is below enter='64MiB'; give at least that.",
        ),
        (
            {"enter": "200MiB"},
            "enter='200MiB' asks for more than can be left of the memory limit of 256.0 MiB, so that the service would "
            "never be ready again; give less, or a share such as '5%'.",
        ),
        (
            {"exit": "256MiB"},
            "exit='256MiB' asks for more than can be left of the memory limit of 256.0 MiB, so that the service would "
            "never be ready again; give less, or a share such as '5%'.",
        ),
        ({"follow": 5}, "follow=5 has no statistics(); give the middleware, or the app that has one."),
        (
            {"follow": MemoryBackpressure()},
            "A Flask extension may serve several apps; give the Flask app to be followed.",
        ),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_in_one_sentence(
    service: Service, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError) as e:
        HealthEndpoint(monitor=service.monitor, **options)
    assert str(e.value) == message


@pytest.mark.parametrize("app", [make_flask(), Starlette()])
def test_an_app_without_a_middleware_cannot_be_followed(app: Any) -> None:
    client = WSGIClient(HealthEndpoint(app))
    assert client.get("/livez").status_code == 200
    with pytest.raises(ConfigurationError, match=r"has no memory backpressure that could be followed; wrap it"):
        client.get("/readyz")


def test_where_the_limits_cannot_be_found_out_it_is_made_and_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable() -> None:
        raise ProbeError("/proc/self/cgroup", "cannot be read")

    monkeypatch.setattr(health_module, "default_monitor", unreadable)
    client = WSGIClient(HealthEndpoint(enter="64MiB"))
    assert client.get("/readyz").status_code == 200
    assert client.get("/readyz?verbose").get_json()["memory"] is None
