import json

import pytest

from resource_monitor.errors import ConfigurationError
from resource_monitor.middleware.responses import TOO_LARGE, Refusal


def seconds(refusal: Refusal, draws: int = 400) -> set[int]:
    return {int(dict(refusal.wsgi_headers())["retry-after"]) for _ in range(draws)}


def test_the_body_is_a_problem_detail_without_figures() -> None:
    assert json.loads(Refusal().body) == {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "The service is short of memory; please try again later.",
    }


def test_the_headers_are_exact() -> None:
    refusal = Refusal()
    assert refusal.wsgi_status == "503 Service Unavailable"
    headers = refusal.wsgi_headers()
    assert headers[:3] == [
        ("content-type", "application/problem+json"),
        ("content-length", str(len(refusal.body))),
        ("cache-control", "no-store"),
    ]
    assert headers[3][0] == "retry-after"
    assert len(headers) == 4


def test_asgi_has_the_same_in_bytes() -> None:
    refusal = Refusal()
    start = refusal.asgi_start("http.response.start")
    assert (start["type"], start["status"]) == ("http.response.start", 503)
    assert [(name.decode(), value.decode()) for name, value in start["headers"]][:3] == refusal.wsgi_headers()[:3]


def test_retry_after_is_spread_so_that_clients_do_not_come_back_together() -> None:
    assert seconds(Refusal()) == {1, 2}
    assert seconds(Refusal(10)) == set(range(10, 21))


def test_the_spread_ends_at_a_minute() -> None:
    found = seconds(Refusal(86400), 2000)
    assert min(found) >= 86400
    assert max(found) <= 86460


def test_a_server_that_changes_its_headers_changes_no_other_response() -> None:
    refusal = Refusal()
    for _ in range(20):
        refusal.wsgi_headers().append(("x", "y"))
        refusal.asgi_start("http.response.start")["headers"].append((b"x", b"y"))
    assert len(refusal.wsgi_headers()) == 4
    assert len(refusal.asgi_start("http.response.start")["headers"]) == 4


@pytest.mark.parametrize("value", [0, -1, 86401, 1.5, "1", True, None])
def test_refuses_what_is_no_number_of_seconds(value: object) -> None:
    with pytest.raises(ConfigurationError) as e:
        Refusal(value)  # type: ignore[arg-type]
    assert str(e.value) == (f"retry_after={value!r} is not a number of seconds; give a whole number from 1 to 86400.")


def test_too_large_a_body_is_told_so_and_not_to_come_again() -> None:
    assert json.loads(TOO_LARGE.body) == {
        "type": "about:blank",
        "title": "Content Too Large",
        "status": 413,
        "detail": "The body of the request is larger than this service takes.",
    }
    assert TOO_LARGE.wsgi_status == "413 Content Too Large"
    assert TOO_LARGE.wsgi_headers() == [
        ("content-type", "application/problem+json"),
        ("content-length", str(len(TOO_LARGE.body))),
        ("cache-control", "no-store"),
    ]
