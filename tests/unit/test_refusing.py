import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from resource_monitor.admission import Reason
from resource_monitor.errors import ConfigurationError
from resource_monitor.middleware import Shed, ShedResponse
from resource_monitor.middleware.asking import Ask
from resource_monitor.middleware.refusing import Refusals
from resource_monitor.middleware.responses import Answer

ASK = Ask("POST", "/jobs")


def shed(refusals: Refusals, reason: Reason = Reason.MEMORY) -> Shed:
    return refusals.shed(ASK, reason)


def answer(refusals: Refusals, reason: Reason = Reason.MEMORY, accept: str | None = None) -> Answer:
    return refusals.answer(shed(refusals, reason), accept)


def headers(answer: Answer) -> dict[str, str]:
    return dict(answer.wsgi_headers())


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


# --- the usual answer ---


def test_a_refusal_tells_what_was_refused_and_why() -> None:
    found = Refusals(retry_after=5).shed(ASK, Reason.PACE, started=True)
    assert found.retry_after in range(5, 11)
    assert found == Shed(Reason.PACE, "POST", "/jobs", 503, found.retry_after, started=True)


@pytest.mark.parametrize(
    ("path", "mount", "expected"),
    [
        ("/shop/jobs", "/shop", "/shop/jobs"),
        ("/jobs", "/shop", "/shop/jobs"),
        ("/jobs", "/shop/", "/shop/jobs"),
        ("/shopping", "/shop", "/shop/shopping"),
        ("/shop", "/shop", "/shop"),
        ("/jobs", "/", "/jobs"),
    ],
)
def test_the_path_is_the_clients_whatever_the_server_leaves_out(path: str, mount: str, expected: str) -> None:
    assert Refusals().shed(Ask("GET", path, mount), Reason.MEMORY).path == expected


def test_the_answer_says_the_same_time_as_the_shed() -> None:
    refusals = Refusals(retry_after=100)
    for _ in range(20):
        found = shed(refusals)
        assert headers(refusals.answer(found, None))["retry-after"] == str(found.retry_after)


@pytest.mark.parametrize(("retry_after", "least", "most"), [(1, 1, 2), (10, 10, 20), (86400, 86400, 86460)])
def test_retry_after_is_spread_so_that_clients_do_not_come_back_together(
    retry_after: int, least: int, most: int
) -> None:
    refusals = Refusals(retry_after=retry_after)
    assert {shed(refusals).retry_after for _ in range(2000)} == set(range(least, most + 1))


@pytest.mark.parametrize("value", [0, -1, 86401, 1.5, "1", True, None])
def test_refuses_what_is_no_number_of_seconds(value: Any) -> None:
    with pytest.raises(ConfigurationError) as e:
        Refusals(retry_after=value)
    assert str(e.value) == f"retry_after={value!r} is not a number of seconds; give a whole number from 1 to 86400."


def test_those_who_take_no_json_get_text() -> None:
    refusals = Refusals()
    assert headers(answer(refusals))["content-type"] == "application/problem+json"
    assert headers(answer(refusals, accept="text/html"))["content-type"] == "text/plain; charset=utf-8"
    assert headers(answer(refusals, Reason.TOO_LARGE, "text/html"))["content-type"] == "text/plain; charset=utf-8"


def test_429_on_request() -> None:
    found = answer(Refusals(status=429))
    assert found.wsgi_status == "429 Too Many Requests"
    assert json.loads(found.body)["status"] == 429
    assert shed(Refusals(status=429)).status == 429


@pytest.mark.parametrize("value", [500, 200, 418, "503", None, True])
def test_any_other_status_is_a_mistake(value: Any) -> None:
    with pytest.raises(ConfigurationError) as e:
        Refusals(status=value)
    assert str(e.value) == f"status={value!r} is no status for want of memory; give 503 or 429."


def test_too_large_a_body_is_told_so_and_not_to_come_again() -> None:
    refusals = Refusals(status=429)
    found = answer(refusals, Reason.TOO_LARGE)
    assert found.wsgi_status == "413 Content Too Large"
    assert "retry-after" not in headers(found)
    assert shed(refusals, Reason.TOO_LARGE) == Shed(Reason.TOO_LARGE, "POST", "/jobs", 413, None)


# --- a refusal of one's own ---


@pytest.mark.parametrize(
    ("response", "content_type", "body"),
    [
        (b"\x00full", "application/octet-stream", b"\x00full"),
        ("voll, später!", "text/plain; charset=utf-8", "voll, später!".encode()),
        ({"error": "full"}, "application/json", b'{"error": "full"}'),
        (ShedResponse("<h1>full", headers={"Content-Type": "text/html"}), "text/html", b"<h1>full"),
    ],
)
@pytest.mark.parametrize("called", [False, True])
def test_a_response_may_be_given_or_made(response: Any, content_type: str, body: bytes, called: bool) -> None:
    refusals = Refusals(response=(lambda shed: response) if called else response)
    found = answer(refusals, accept="text/plain")
    assert found.status == 503
    assert found.body == body
    sent = {name.lower(): value for name, value in found.wsgi_headers()}
    assert int(sent.pop("retry-after")) in (1, 2)
    assert sent == {"content-type": content_type, "cache-control": "no-store", "content-length": str(len(body))}
    assert len(sent) + 1 == len(found.wsgi_headers())


def test_a_response_that_is_given_is_made_into_bytes_once() -> None:
    refusals = Refusals(response={"error": "full"})
    found = shed(refusals)
    assert refusals.answer(found, None) is refusals.answer(found, "text/plain")


def test_ones_own_status_and_headers_go_before() -> None:
    own = ShedResponse(
        "", status=302, headers=(("Location", "/sorry"), ("Retry-After", "60"), ("Cache-Control", "max-age=1"))
    )
    for refusals in (Refusals(response=own), Refusals(response=lambda shed: own)):
        found = answer(refusals)
        assert found.wsgi_status == "302 Found"
        assert found.wsgi_headers() == [
            ("Location", "/sorry"),
            ("Retry-After", "60"),
            ("Cache-Control", "max-age=1"),
            ("content-type", "text/plain; charset=utf-8"),
            ("content-length", "0"),
        ]


def test_a_function_is_given_the_refusal() -> None:
    given: list[Shed] = []

    def response(shed: Shed) -> dict[str, Any]:
        given.append(shed)
        return {"path": shed.path}

    refusals = Refusals(response=response)
    found = shed(refusals)
    assert refusals.answer(found, None).body == b'{"path": "/jobs"}'
    assert given == [found]


def test_where_a_function_gives_nothing_the_usual_answer_is_sent() -> None:
    refusals = Refusals(response=lambda shed: None if shed.reason is Reason.TOO_LARGE else "mine")
    assert answer(refusals).body == b"mine"
    assert answer(refusals, Reason.TOO_LARGE).wsgi_status == "413 Content Too Large"


def test_a_function_answers_too_large_bodies_with_their_own_status() -> None:
    assert answer(Refusals(response=lambda shed: "mine"), Reason.TOO_LARGE).wsgi_status == "413 Content Too Large"


def test_a_response_that_is_given_is_not_for_those_who_sent_too_much() -> None:
    found = answer(Refusals(response="come again"), Reason.TOO_LARGE)
    assert found.status == 413
    assert b"come again" not in found.body


async def coroutine(shed: Shed) -> str:
    return "later"


class AsyncCall:
    async def __call__(self, shed: Shed) -> str:
        return "later"


def fail(shed: Shed) -> str:
    raise RuntimeError("secret")


@pytest.mark.parametrize(
    "response",
    [
        fail,
        lambda shed: 5,
        lambda shed: {"x": object()},
        lambda shed: "\ud800",
        lambda shed: ShedResponse("x", status=99),
        lambda shed: ShedResponse("x", headers={"x": "a\r\nset-cookie: b"}),
        AsyncCall(),
        lambda: "takes nothing",
    ],
)
def test_a_function_that_fails_costs_nobody_the_usual_answer(
    response: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    refusals = Refusals(response=response)
    for _ in range(3):
        found = answer(refusals)
        assert json.loads(found.body)["status"] == 503
        assert b"secret" not in found.body
    [complaint] = complaints(caplog)
    assert complaint.startswith("response failed for a refusal (")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShedResponse(5), "The body 5 cannot be sent; give bytes, a text or a dict."),  # type: ignore[arg-type]
        (lambda: ShedResponse("", status=204), "status=204 is none of an answer with a body; give one such as 503."),
        (lambda: ShedResponse("", status=True), "status=True is none of an answer with a body; give one such as 503."),
        (lambda: ShedResponse("", status=600), "status=600 is none of an answer with a body; give one such as 503."),
        (
            lambda: ShedResponse("", headers={"Content-Length": "7"}),
            "The header 'Content-Length' cannot be set here; leave it to the server.",
        ),
        (
            lambda: ShedResponse("", headers=(("a b", "7"),)),
            "The header 'a b' cannot be set here; leave it to the server.",
        ),
        (
            lambda: ShedResponse("", headers={"x": "a\nb"}),
            "The header 'x' cannot be 'a\\nb'; give one line of Latin-1.",
        ),
        (lambda: ShedResponse("", headers={"x": "€"}), "The header 'x' cannot be '€'; give one line of Latin-1."),
        (
            lambda: Refusals(response=5),  # type: ignore[arg-type]
            "response=5 cannot be called; give a ShedResponse, bytes, a text, a dict, or a function from the Shed to "
            "one.",
        ),
        (
            lambda: Refusals(response={1: b""}),
            "The body {1: b''} cannot be sent (Object of type bytes is not JSON serializable); give what UTF-8 or JSON "
            "can hold.",
        ),
        (
            lambda: Refusals(on_shed="print"),  # type: ignore[arg-type]
            "on_shed='print' cannot be called; give a function of the Shed.",
        ),
    ],
)
def test_what_can_be_no_answer_is_refused_in_one_sentence(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError) as e:
        make()
    assert str(e.value) == message


@pytest.mark.parametrize("option", ["response", "on_shed"])
def test_nothing_waits_for_a_coroutine_function(option: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is a coroutine function, which no refusal waits for; give "):
        Refusals(**{option: coroutine})  # type: ignore[arg-type]


# --- being told ---


def test_who_wants_to_know_is_told_of_each_refusal_before_it_is_answered() -> None:
    told: list[Shed] = []
    refusals = Refusals(on_shed=told.append)
    found = [shed(refusals), shed(refusals, Reason.TOO_LARGE)]
    assert told == found


@pytest.mark.parametrize("on_shed", [fail, AsyncCall(), lambda: None])
def test_who_fails_to_be_told_breaks_no_refusal(on_shed: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals(on_shed=on_shed, response=fail)
    for _ in range(3):
        assert answer(refusals).status == 503
    first, second = complaints(caplog)
    assert first.startswith("on_shed failed for a refusal (")
    assert second.startswith("response failed for a refusal (")
