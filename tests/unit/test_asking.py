import logging
from collections.abc import Callable
from typing import Any

import pytest

from resource_monitor.admission import Priority
from resource_monitor.errors import ConfigurationError
from resource_monitor.middleware.asking import MOST, Ask, Asking

MIB = 1 << 20
CARRIER = {"path": "/"}


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert all(record.levelno == logging.ERROR for record in caplog.records)
    return [record.getMessage() for record in caplog.records]


def failing(_: Any) -> Any:
    raise KeyError("length")


def giving(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


def test_a_request_like_any_other_needs_nothing_known_and_matters_as_much() -> None:
    assert Asking(0, None).ask(CARRIER, "GET", "/x", "/app") == Ask("GET", "/x", "/app", 0, Priority.DEFAULT)


@pytest.mark.parametrize(("cost", "need"), [(1000, 1000), ("8MiB", 8 * MIB), (lambda _: 5, 5), (lambda _: 0, 0)])
def test_a_request_needs_what_the_user_says_and_its_body(cost: Any, need: int) -> None:
    assert Asking(cost, None).ask(CARRIER, "GET", "/").need == need
    assert Asking(cost, None).ask(CARRIER, "GET", "/", body=7).need == need + 7


@pytest.mark.parametrize("cost", [2**62, lambda _: 2**200])
def test_a_request_needs_no_more_than_can_be_counted(cost: Any) -> None:
    assert Asking(cost, None).ask(CARRIER, "GET", "/", body=7).need == MOST


def test_callables_are_given_what_carries_the_request() -> None:
    seen: list[Any] = []

    def cost(carrier: Any) -> int:
        seen.append(carrier)
        return 1

    def priority(carrier: Any) -> Priority:
        seen.append(carrier)
        return Priority.CRITICAL

    assert Asking(cost, priority).ask(CARRIER, "GET", "/").priority is Priority.CRITICAL
    assert seen == [CARRIER, CARRIER]


@pytest.mark.parametrize("priority", list(Priority))
def test_a_priority_may_be_given_by_its_name(priority: Priority) -> None:
    assert Asking(0, giving(str(priority))).ask(CARRIER, "GET", "/").priority is priority


@pytest.mark.parametrize("value", [-1, 1.5, "8MiB", None])
def test_a_cost_that_is_no_number_of_bytes_counts_as_none_and_is_logged_once(
    value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    asking = Asking(giving(value), None)
    for _ in range(3):
        assert asking.ask(CARRIER, "GET", "/", body=7).need == 7
    assert complaints(caplog) == [
        f"request_cost gave {value!r} for a request, which is no number of bytes; it counts as 0."
    ]


def test_a_cost_that_fails_counts_as_none_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    asking = Asking(failing, None)
    for _ in range(3):
        assert asking.ask(CARRIER, "GET", "/", body=7).need == 7
    assert complaints(caplog) == ["request_cost failed for a request (KeyError('length')), which counts as 0 bytes."]


@pytest.mark.parametrize("value", ["urgent", 1, None, []])
def test_what_is_no_priority_counts_as_the_default_and_is_logged_once(
    value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    asking = Asking(0, giving(value))
    for _ in range(3):
        assert asking.ask(CARRIER, "GET", "/").priority is Priority.DEFAULT
    assert complaints(caplog) == [f"priority gave {value!r} for a request, which is no Priority; it counts as DEFAULT."]


def test_a_priority_that_fails_counts_as_the_default_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    asking = Asking(0, failing)
    for _ in range(3):
        assert asking.ask(CARRIER, "GET", "/").priority is Priority.DEFAULT
    assert complaints(caplog) == ["priority failed for a request (KeyError('length')), which counts as DEFAULT."]


def test_each_callable_is_complained_of_once(caplog: pytest.LogCaptureFixture) -> None:
    asking = Asking(failing, failing)
    for _ in range(3):
        asking.ask(CARRIER, "GET", "/")
    assert [message.split()[0] for message in complaints(caplog)] == ["request_cost", "priority"]


def test_a_cost_that_is_no_size_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigurationError, match=r"^request_cost: '5%' is not a size; give "):
        Asking("5%", None)


def test_a_priority_that_cannot_be_called_is_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigurationError) as e:
        Asking(0, "critical")  # type: ignore[arg-type]
    assert str(e.value) == (
        "priority='critical' cannot be called; give a function from the scope or environ to a Priority."
    )
