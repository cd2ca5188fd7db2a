import pytest

from resource_monitor.middleware.negotiation import accepts_json


@pytest.mark.parametrize(
    "accept",
    [
        None,
        "",
        " ",
        ",",
        "gibberish",
        "*/*",
        "application/*",
        "application/json",
        "Application/JSON",
        "application/problem+json",
        "application/json;q=0.001",
        "application/json; charset=utf-8",
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "text/plain, application/json;q=0.1",
        "text/html;level=1, */*;q=0.5",
        "application/*;q=0, application/json",
        "*/*;q=0, application/problem+json",
        "application/json;q=0, application/problem+json",
        "application/problem+json, application/json;q=0",
        'text/html;a="x,application/json;q=0,y", */*',
    ],
)
def test_json_is_for_those_who_take_it_or_do_not_say(accept: str | None) -> None:
    assert accepts_json(accept)


@pytest.mark.parametrize(
    "accept",
    [
        "text/plain",
        "text/*",
        "image/png, text/html",
        "application/xml",
        "application/json;q=0",
        "application/json; Q=0.000",
        "application/json;charset=utf-8;q=0, text/plain",
        "*/*, application/json;q=0",
        "*/*, application/*;q=0",
        "*/*;q=0",
        "application/json-seq, application/jsonl",
    ],
)
def test_others_get_text(accept: str) -> None:
    assert not accepts_json(accept)


def test_a_long_text_is_understood_as_well() -> None:
    assert not accepts_json("image/x" + "," * 10_000 + "text/html")
    assert accepts_json("image/x" + "," * 10_000 + "application/json")


@pytest.mark.parametrize(
    "accept",
    [
        '"' + '\\"' * 200_000,
        '"' * 200_001,
        '"\\' * 200_000,
        "," * 400_000,
        "x/y;" * 100_000 + '"',
        "x/y;" + " " * 400_000,
    ],
)
def test_a_text_that_is_made_to_take_long_does_not(accept: str) -> None:
    assert accepts_json(accept) is ("/" not in accept)
