import json

import pytest

from resource_monitor.middleware.responses import Answer, Prepared, headers_for, phrase

DETAIL = "The service is short of memory; please try again later."


@pytest.fixture
def prepared() -> Prepared:
    return Prepared(503, DETAIL, range(10, 21))


def test_the_body_is_a_problem_detail_without_figures(prepared: Prepared) -> None:
    assert json.loads(prepared.answer(10, as_json=True).body) == {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": DETAIL,
    }


def test_the_headers_are_exact(prepared: Prepared) -> None:
    answer = prepared.answer(12, as_json=True)
    assert (answer.status, answer.wsgi_status) == (503, "503 Service Unavailable")
    assert answer.wsgi_headers() == [
        ("content-type", "application/problem+json"),
        ("cache-control", "no-store"),
        ("vary", "accept"),
        ("retry-after", "12"),
        ("content-length", str(len(answer.body))),
    ]


def test_as_text_it_says_the_same(prepared: Prepared) -> None:
    answer = prepared.answer(12, as_json=False)
    assert answer.body.decode() == f"{DETAIL}\n"
    assert answer.wsgi_headers() == [
        ("content-type", "text/plain; charset=utf-8"),
        ("cache-control", "no-store"),
        ("vary", "accept"),
        ("retry-after", "12"),
        ("content-length", str(len(answer.body))),
    ]


def test_asgi_has_the_same_in_bytes(prepared: Prepared) -> None:
    answer = prepared.answer(20, as_json=True)
    start = answer.asgi_start("http.response.start")
    assert (start["type"], start["status"]) == ("http.response.start", 503)
    assert [(name.decode(), value.decode()) for name, value in start["headers"]] == answer.wsgi_headers()


def test_asgi_has_names_in_small_letters() -> None:
    start = Answer(503, [("X-Reason", "Memory")], b"").asgi_start("http.response.start")
    assert start["headers"][0] == (b"x-reason", b"Memory")


def test_an_answer_is_made_once(prepared: Prepared) -> None:
    assert prepared.answer(15, as_json=True) is prepared.answer(15, as_json=True)


def test_an_answer_for_which_coming_again_does_not_help_does_not_say_when() -> None:
    assert "retry-after" not in dict(Prepared(413, "Too much.").answer(None, as_json=True).wsgi_headers())


def test_a_server_that_changes_its_headers_changes_no_other_response(prepared: Prepared) -> None:
    answer = prepared.answer(15, as_json=True)
    answer.wsgi_headers().append(("x", "y"))
    answer.asgi_start("http.response.start")["headers"].append((b"x", b"y"))
    assert len(answer.wsgi_headers()) == 5
    assert len(answer.asgi_start("http.response.start")["headers"]) == 5


@pytest.mark.parametrize(
    ("status", "expected"),
    [(429, "Too Many Requests"), (413, "Content Too Large"), (503, "Service Unavailable"), (599, "Unknown")],
)
def test_statuses_have_the_names_of_the_registry(status: int, expected: str) -> None:
    assert phrase(status) == expected


def test_what_everyone_gets_the_same_does_not_vary() -> None:
    assert headers_for("text/html", None) == [("content-type", "text/html"), ("cache-control", "no-store")]
