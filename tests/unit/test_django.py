"""The Django middleware first in a stack of Django's own, under the handlers of Django's test clients."""

import asyncio
import gc
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import ModuleType
from typing import Any

import django
import pytest
from asgi_client import until
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import FileResponse, HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.urls import path
from held import held, hold, take
from machine import MIB, Service

from resource_monitor import ConfigurationError, reserve
from resource_monitor.middleware import django as adapter
from resource_monitor.middleware import readings

OURS = "resource_monitor.middleware.django.MemoryBackpressureMiddleware"
ABOVE = "django.middleware.security.SecurityMiddleware"
BELOW = [
    "django.middleware.gzip.GZipMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
]
URLS = ModuleType("urls_of_test_django")

if not settings.configured:
    settings.configure(
        ALLOWED_HOSTS=["*"],
        LOGGING_CONFIG=None,
        ROOT_URLCONF=URLS.__name__,
        SECRET_KEY="of no use",
        SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    )
    django.setup()


async def hello_on_loop(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello")


async def exhaust_on_loop(request: HttpRequest) -> HttpResponse:
    take()
    return HttpResponse()


def exhaust(request: HttpRequest) -> HttpResponse:
    take()
    return HttpResponse()


async def never(request: HttpRequest) -> HttpResponse:
    taken = hold()  # noqa: F841
    await asyncio.Event().wait()
    return HttpResponse()


def crash(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("a defect of the view")


def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(iter([b"one", b"two"]))


async def stream_on_loop(request: HttpRequest) -> StreamingHttpResponse:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.sleep(0)
        yield b"two"

    return StreamingHttpResponse(pieces())


def exhaust_in_stream(request: HttpRequest) -> StreamingHttpResponse:
    def pieces() -> Iterator[bytes]:
        yield b"one"
        take()

    return StreamingHttpResponse(pieces())


async def exhaust_in_stream_on_loop(request: HttpRequest) -> StreamingHttpResponse:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        take()

    return StreamingHttpResponse(pieces())


def reserve_too_much(request: HttpRequest) -> HttpResponse:
    with reserve(250 * MIB, monitor=settings.MEMORY_BACKPRESSURE["monitor"]):
        raise AssertionError("there was no room")


def this_file(request: HttpRequest) -> FileResponse:
    return FileResponse(open(__file__, "rb"))


URLS.urlpatterns = [  # type: ignore[attr-defined]
    path("", lambda request: HttpResponse("hello")),
    path("on-loop", hello_on_loop),
    path("healthz", lambda request: HttpResponse("ok")),
    path("exhaust", exhaust),
    path("exhaust-on-loop", exhaust_on_loop),
    path("never", never),
    path("crash", crash),
    path("stream", stream),
    path("stream-on-loop", stream_on_loop),
    path("exhaust-in-stream", exhaust_in_stream),
    path("exhaust-in-stream-on-loop", exhaust_in_stream_on_loop),
    path("reserve", reserve_too_much),
]


def exhausting_middleware(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Any:
    """One that itself runs out of memory, for one path."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        if request.path == "/healthz":
            take()
        return response

    return middleware


def replacing_middleware(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Any:
    """One that drops what it got without closing it, as ConditionalGetMiddleware does for a 304."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        get_response(request)
        return HttpResponse("another")

    return middleware


@pytest.fixture(autouse=True)
def _django(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, URLS.__name__, URLS)
    # the process that runs the tests is spared the guard; the views raise what it would make CPython raise
    monkeypatch.setattr(readings, "ensure_installed", lambda monitor: None)
    held.clear()
    with configured(service):
        yield


def configured(service: Service, *, middleware: list[str] | None = None, **options: Any) -> override_settings:
    return override_settings(
        MIDDLEWARE=middleware or [OURS, *BELOW], MEMORY_BACKPRESSURE={"monitor": service.monitor, **options}
    )


Answer = Any
Get = Callable[..., Answer]


@pytest.fixture(params=["wsgi", "asgi"])
def get(request: pytest.FixtureRequest) -> Get:
    """One request to a new handler of either kind, whose answer is read to its end unless ``read`` says otherwise."""
    if request.param == "wsgi":
        return lambda path, **headers: Client(raise_request_exception=False).get(path, headers=headers)
    return lambda path, **headers: asyncio.run(
        in_loop(AsyncClient(raise_request_exception=False).get(path, headers=headers))
    )


async def in_loop(answer: Awaitable[Answer]) -> Answer:
    return await answer


def counts() -> tuple[int, int, int]:
    """How many requests were admitted, were lost, and are in flight."""
    found = adapter.statistics()
    return found.admitted, found.wasted, found.in_flight


def test_a_request_is_answered_with_room_and_refused_without(service: Service, get: Get) -> None:
    assert get("/").content == b"hello"
    assert counts() == (1, 0, 0)
    service.fill()
    answer = get("/")
    assert answer.status_code == 503
    assert answer["content-type"] == "application/problem+json"
    assert answer["cache-control"] == "no-store"
    assert answer["retry-after"] in ("1", "2")
    assert answer.json()["title"] == "Service Unavailable"
    assert (adapter.statistics().shed, adapter.statistics().in_flight) == (1, 0)
    service.empty()
    assert get("/").status_code == 200


def test_views_of_either_kind_are_served(get: Get) -> None:
    assert get("/on-loop").content == b"hello"
    assert counts() == (1, 0, 0)


def test_a_refusal_to_a_head_has_no_body(service: Service) -> None:
    service.fill()
    answer = Client().head("/")
    assert (answer.status_code, answer.content) == (503, b"")
    assert int(answer["content-length"]) > 0


def test_the_rest_of_a_refused_body_is_read_and_dropped_once_the_answer_is_sent(service: Service) -> None:
    middleware = adapter.MemoryBackpressureMiddleware(lambda request: HttpResponse())
    service.fill()
    request = RequestFactory().post("/", data=b"x" * MIB, content_type="text/plain")
    answer = middleware(request)
    assert answer.status_code == 503  # type: ignore[union-attr]
    answer.close()  # type: ignore[union-attr]
    assert request.read(1) == b""


def test_liveness_paths_are_exempt(service: Service, get: Get) -> None:
    service.fill()
    assert get("/healthz").content == b"ok"
    assert adapter.statistics().exempt == 1


def test_a_preflight_passes_and_one_with_a_body_does_not(service: Service) -> None:
    service.fill()
    headers = {"origin": "https://shop.example", "access-control-request-method": "PUT"}
    assert Client().options("/", headers=headers).status_code == 200
    assert Client().options("/", b"x", headers=headers).status_code == 503
    assert Client().options("/", headers={**headers, "transfer-encoding": "chunked"}).status_code == 503


def test_refusals_are_no_errors_in_djangos_log(service: Service, get: Get, caplog: pytest.LogCaptureFixture) -> None:
    service.fill()
    assert get("/").status_code == 503
    assert get("/exhaust").status_code == 503
    assert not [record for record in caplog.records if record.name == "django.request"]


@pytest.mark.parametrize("path", ["/exhaust", "/exhaust-on-loop", "/reserve"])
@pytest.mark.parametrize("debug", [False, True])
def test_a_view_that_runs_out_of_memory_is_answered_503_and_lets_go(
    get: Get, path: str, debug: bool, caplog: pytest.LogCaptureFixture
) -> None:
    gc.disable()
    try:
        with override_settings(DEBUG=debug):
            answer = get(path)
        assert [reference() for reference in held] == [None] * len(held)
    finally:
        gc.enable()
    assert answer.status_code == 503
    assert answer["content-type"] == "application/problem+json"
    assert counts() == (1, 1, 0)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("debug", [False, True])
def test_another_middleware_that_runs_out_of_memory_is_answered_503(service: Service, get: Get, debug: bool) -> None:
    stack = [OURS, *BELOW, f"{__name__}.exhausting_middleware"]
    with configured(service, middleware=stack, exempt=[]), override_settings(DEBUG=debug):
        answer = get("/healthz")
        assert answer.status_code == 503
        assert answer["content-type"] == "application/problem+json"
        assert counts() == (1, 1, 0)
        # Django's page for developers looks at all that the frames hold, and the log keeps those here
        assert debug or [reference() for reference in held] == [None]


def test_errors_that_django_is_told_to_let_through_are_answered_too(service: Service, get: Get) -> None:
    stack = [OURS, f"{__name__}.exhausting_middleware"]
    with configured(service, middleware=stack, exempt=[]), override_settings(DEBUG_PROPAGATE_EXCEPTIONS=True):
        assert get("/healthz").status_code == 503
        assert counts() == (1, 1, 0)


def test_in_a_dry_run_they_stay_djangos_and_count(service: Service, get: Get) -> None:
    stack = [OURS, *BELOW, f"{__name__}.exhausting_middleware"]
    with configured(service, middleware=stack, exempt=[], dry_run=True):
        for path in ("/exhaust", "/healthz"):
            assert get(path).status_code == 500
            assert counts() == (1, 1, 0)
        with override_settings(DEBUG_PROPAGATE_EXCEPTIONS=True), pytest.raises(MemoryError):
            get("/exhaust")
        assert counts() == (1, 1, 0)


def test_what_else_a_view_raises_stays_djangos(service: Service, get: Get) -> None:
    assert get("/crash").status_code == 500
    assert counts() == (1, 0, 0)
    with override_settings(DEBUG_PROPAGATE_EXCEPTIONS=True), pytest.raises(RuntimeError, match="a defect of the view"):
        get("/crash")
    assert counts() == (1, 0, 0)


def test_it_works_between_other_middlewares(service: Service, get: Get) -> None:
    with configured(service, middleware=[ABOVE, OURS, *BELOW]):
        answer = get("/exhaust")
        assert (answer.status_code, answer["x-content-type-options"]) == (503, "nosniff")
        service.fill()
        answer = get("/")
        assert (answer.status_code, answer["x-content-type-options"]) == (503, "nosniff")


def test_a_streaming_response_counts_until_it_is_closed() -> None:
    client = Client(headers={"accept-encoding": "gzip"})
    for middleware_compresses in (False, True):
        path = "/stream"
        answer = client.get(path, headers={"accept-encoding": "gzip" if middleware_compresses else "identity"})
        assert answer.has_header("content-encoding") == middleware_compresses
        assert adapter.statistics().in_flight == 1
        content: Iterator[bytes] = answer.streaming_content  # type: ignore[attr-defined]
        assert next(content)
        assert adapter.statistics().in_flight == 1
        assert list(content)
        answer.close()
        assert adapter.statistics().in_flight == 0


def test_an_asynchronous_stream_counts_until_it_is_closed() -> None:
    async def talk() -> None:
        answer = await AsyncClient().get("/stream-on-loop")
        assert adapter.statistics().in_flight == 1
        assert [piece async for piece in answer.streaming_content] == [b"one", b"two"]  # type: ignore[attr-defined]
        answer.close()
        await asyncio.sleep(0)
        assert counts() == (1, 0, 0)

    asyncio.run(talk())


def test_a_stream_that_runs_out_of_memory_counts_as_lost_and_is_told(service: Service) -> None:
    told: list[Any] = []
    with configured(service, on_shed=told.append):
        answer = Client().get("/exhaust-in-stream")
        with pytest.raises(MemoryError):
            list(answer.streaming_content)  # type: ignore[attr-defined]
        answer.close()
        assert [reference() for reference in held] == [None]
        assert counts() == (1, 1, 0)
    assert [(shed.path, shed.started) for shed in told] == [("/exhaust-in-stream", True)]


def test_an_asynchronous_stream_that_runs_out_of_memory_counts_as_lost() -> None:
    async def talk() -> None:
        answer = await AsyncClient().get("/exhaust-in-stream-on-loop")
        with pytest.raises(MemoryError):
            assert [piece async for piece in answer.streaming_content]  # type: ignore[attr-defined]
        answer.close()

    asyncio.run(talk())
    assert counts() == (1, 1, 0)


def test_a_file_is_still_one_that_the_server_may_send_itself() -> None:
    middleware = adapter.MemoryBackpressureMiddleware(this_file)
    answer = middleware(RequestFactory().get("/file"))
    assert isinstance(answer, FileResponse)
    assert answer.file_to_stream is not None
    assert adapter.statistics().in_flight == 1
    answer.close()
    assert adapter.statistics().in_flight == 0


def test_a_response_that_another_middleware_dropped_leaves_when_the_next_request_comes(service: Service) -> None:
    with configured(service, middleware=[f"{__name__}.replacing_middleware", OURS]):
        client = Client()
        for _ in range(3):
            assert client.get("/").content == b"another"
            gc.collect()  # what a test client answers refers to itself
        assert adapter.statistics().in_flight == 1


def test_a_request_that_is_cancelled_is_no_longer_in_flight() -> None:
    async def talk() -> None:
        asking = asyncio.ensure_future(in_loop(AsyncClient().get("/never")))
        await until(lambda: held)
        assert adapter.statistics().in_flight == 1
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert adapter.statistics().in_flight == 0

    asyncio.run(talk())


def test_a_request_waits_for_room(service: Service) -> None:
    async def talk() -> None:
        with configured(service, max_in_flight=1, max_wait=30):
            client = AsyncClient()
            first = await client.get("/stream-on-loop")
            waiting = asyncio.ensure_future(in_loop(client.get("/on-loop")))
            await until(lambda: adapter.statistics().waiting)
            first.close()
            assert (await waiting).content == b"hello"

    asyncio.run(talk())


def test_callables_get_the_request(service: Service, get: Get) -> None:
    seen: list[Any] = []

    def cost(request: HttpRequest) -> int:
        seen.append((request.method, request.path, request.headers["x-size"]))
        return 250 * MIB

    with configured(service, request_cost=cost):
        assert get("/", **{"x-size": "large"}).status_code == 503
    assert seen == [("GET", "/", "large")]


def test_what_django_may_keep_of_a_body_is_promised(service: Service) -> None:
    service.use(256 * MIB - 24 * MIB)
    assert Client().post("/", data=b"x" * MIB, content_type="text/plain").status_code == 200
    with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=None):
        answer = Client().post("/", data=b"x" * 12 * MIB, content_type="text/plain")
        assert answer.status_code == 503


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"min_availabel": 1}, r"^MEMORY_BACKPRESSURE has 'min_availabel': 1, which is no option; the nearest is 'min"),
        ({"MAX_WAIT": 1}, r"has 'MAX_WAIT': 1, which is no option; the nearest is 'max_wait'\.$"),
        ({"retry_after": 0}, r"^MEMORY_BACKPRESSURE\['retry_after'\]=0 is not a number of seconds"),
        ({"max_body": "1MiB"}, r"^max_body='1MiB' says nothing in Django's settings, .*DATA_UPLOAD_MAX_MEMORY_SIZE"),
        (["dry_run"], r"^MEMORY_BACKPRESSURE=\['dry_run'\] is no dict"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_told_at_the_start(setting: Any, message: str) -> None:
    with override_settings(MEMORY_BACKPRESSURE=setting), pytest.raises(ImproperlyConfigured, match=message):
        Client().get("/")


def test_the_setting_may_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with override_settings():
        del settings.MEMORY_BACKPRESSURE
        monkeypatch.setattr(adapter, "Gate", lambda names, **options: options)
        middleware = adapter.MemoryBackpressureMiddleware(lambda request: HttpResponse())
        assert middleware._gate == {}  # type: ignore[comparison-overlap]


def test_statistics_before_there_is_a_middleware_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "_newest", None)
    with pytest.raises(ConfigurationError, match=f"put '{OURS}' first into MIDDLEWARE"):
        adapter.statistics()
