from collections.abc import Callable
from typing import Any

import pytest
from machine import MIB, Service

from resource_monitor.errors import ConfigurationError
from resource_monitor.middleware import MemoryBackpressureMiddleware, WSGIMemoryBackpressureMiddleware
from resource_monitor.middleware.environment import VARIABLES, settle
from resource_monitor.middleware.gate import Gate
from resource_monitor.middleware.options import Options

# What no text can be, and the limit, of which the monitor takes care.
WITHOUT = {"also", "limit", "monitor", "on_shed", "priority", "response"}


def settled(monkeypatch: pytest.MonkeyPatch, text: str, option: str) -> object:
    monkeypatch.setenv(VARIABLES[option], text)
    options, names = settle({})
    assert list(options) == list(names) == [option]
    return options[option]  # type: ignore[literal-required]


def test_every_option_that_can_be_written_has_a_variable() -> None:
    assert set(VARIABLES) == Options.__optional_keys__ - WITHOUT
    assert VARIABLES["max_in_flight"] == "RESOURCE_MONITOR_MAX_IN_FLIGHT"


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("min_available", "64MiB", "64MiB"),
        ("min_available", "None", None),
        ("request_cost", "8MiB", "8MiB"),
        ("request_cost", "none", 0),
        ("max_in_flight", "40", 40),
        ("max_in_flight", "none", None),
        ("max_wait", "0.5", 0.5),
        ("max_wait", " 2 ", 2.0),
        ("max_body", "10MiB", "10MiB"),
        ("max_body", "none", None),
        ("body_timeout", "3", 3.0),
        ("exempt", "/livez, /static/*,", ["/livez", "/static/*"]),
        ("status", "429", 429),
        ("retry_after", "30", 30),
        ("on_probe_error", "Refuse", "refuse"),
        ("allocation_guard", "off", False),
        ("allocation_guard", "none", None),
        ("dry_run", "TRUE", True),
        ("dry_run", "0", False),
        ("on_stuck", "stop", "stop"),
        ("on_stuck", "none", None),
        ("stuck_after", "30", 30.0),
    ],
)
def test_a_variable_is_read_as_its_option_is_meant(
    monkeypatch: pytest.MonkeyPatch, option: str, text: str, value: object
) -> None:
    found = settled(monkeypatch, text, option)
    assert found == value
    assert type(found) is type(value)


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES.values():
        monkeypatch.setenv(variable, " ")
    assert settle({}) == ({}, {})


def test_what_kubernetes_makes_for_a_service_of_our_name_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESOURCE_MONITOR_PORT", "tcp://10.0.0.1:80")
    assert settle({}) == ({}, {})


def test_the_constructor_goes_before_a_config_and_that_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for option in ("max_wait", "max_body", "retry_after"):
        monkeypatch.setenv(VARIABLES[option], "1")
    config: dict[str, tuple[str, object]] = {"max_wait": ("MAX_WAIT", 2), "max_body": ("MAX_BODY", "2")}
    options, names = settle({"max_wait": 3.0}, config)
    assert options == {"max_wait": 3.0, "max_body": "2", "retry_after": 1}
    assert names == {"max_body": "MAX_BODY", "retry_after": "RESOURCE_MONITOR_RETRY_AFTER"}
    assert names["max_wait"] == "max_wait"


def test_none_from_the_constructor_goes_before_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESOURCE_MONITOR_MAX_BODY", "1MiB")
    assert settle({"max_body": None}) == ({"max_body": None}, {})


@pytest.mark.parametrize(
    ("option", "text", "sentence"),
    [
        (
            "min_available",
            "lots",
            "RESOURCE_MONITOR_MIN_AVAILABLE: 'lots' is not a size; give bytes as a number, a size such as \"64MiB\", "
            'or a share of the limit such as "5%".',
        ),
        (
            "min_available",
            "1GiB",
            "RESOURCE_MONITOR_MIN_AVAILABLE='1GiB' is not below the memory limit of 256.0 MiB, so every request would "
            "be refused; give less, or a share such as '5%'.",
        ),
        (
            "request_cost",
            "-1",
            "RESOURCE_MONITOR_REQUEST_COST: '-1' is not a size; give bytes as a number, or a size such as \"64MiB\".",
        ),
        (
            "max_in_flight",
            "0",
            "RESOURCE_MONITOR_MAX_IN_FLIGHT=0 is no number of requests; give a whole number from 1 to 10**9, or None.",
        ),
        (
            "max_in_flight",
            "many",
            "RESOURCE_MONITOR_MAX_IN_FLIGHT='many' is no number of requests; "
            "give a whole number from 1 to 10**9, or None.",
        ),
        ("max_wait", "5s", "RESOURCE_MONITOR_MAX_WAIT='5s' is no time to wait; give seconds, from 0 to 3600."),
        ("max_wait", "nan", "RESOURCE_MONITOR_MAX_WAIT=nan is no time to wait; give seconds, from 0 to 3600."),
        (
            "max_body",
            "5%",
            "RESOURCE_MONITOR_MAX_BODY='5%' is no size of a body; give bytes as a number, a size such as \"10MiB\", or "
            "None.",
        ),
        ("body_timeout", "-1", "RESOURCE_MONITOR_BODY_TIMEOUT=-1.0 is no time to wait; give seconds, from 0 to 3600."),
        (
            "exempt",
            "/livez,static/*",
            "RESOURCE_MONITOR_EXEMPT path 'static/*' can match no request; write it with a leading slash.",
        ),
        ("status", "500", "RESOURCE_MONITOR_STATUS=500 is no status for want of memory; give 503 or 429."),
        (
            "retry_after",
            "1.5",
            "RESOURCE_MONITOR_RETRY_AFTER='1.5' is not a number of seconds; give a whole number from 1 to 86400.",
        ),
        (
            "on_probe_error",
            "ignore",
            "RESOURCE_MONITOR_ON_PROBE_ERROR='ignore' is neither 'admit' nor 'refuse'; give one of them.",
        ),
        (
            "allocation_guard",
            "maybe",
            "RESOURCE_MONITOR_ALLOCATION_GUARD='maybe' is neither true, false nor none; give one of them.",
        ),
        ("dry_run", "maybe", "RESOURCE_MONITOR_DRY_RUN='maybe' is neither true nor false; give one of them."),
        (
            "on_stuck",
            "explode",
            "RESOURCE_MONITOR_ON_STUCK='explode' cannot be done; give 'log', 'stop', a function without arguments, or "
            "None.",
        ),
        (
            "stuck_after",
            "0",
            "RESOURCE_MONITOR_STUCK_AFTER=0.0 is no time to be stuck for; give seconds, from 1 to 86400.",
        ),
    ],
)
def test_a_bad_value_is_told_with_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, service: Service, option: str, text: str, sentence: str
) -> None:
    monkeypatch.setenv(VARIABLES[option], text)
    options, names = settle({"monitor": service.monitor})
    with pytest.raises(ConfigurationError) as e:
        Gate(names, **options)
    assert str(e.value) == sentence


@pytest.mark.parametrize("adapter", [MemoryBackpressureMiddleware, WSGIMemoryBackpressureMiddleware])
def test_the_adapters_read_the_environment(
    monkeypatch: pytest.MonkeyPatch, service: Service, adapter: Callable[..., Any]
) -> None:
    monkeypatch.setenv("RESOURCE_MONITOR_MIN_AVAILABLE", "32MiB")
    assert adapter(None, monitor=service.monitor).statistics().min_available == 32 * MIB
    assert adapter(None, monitor=service.monitor, min_available="48MiB").statistics().min_available == 48 * MIB
    monkeypatch.setenv("RESOURCE_MONITOR_MIN_AVAILABLE", "much")
    with pytest.raises(ConfigurationError, match=r"^RESOURCE_MONITOR_MIN_AVAILABLE: 'much' "):
        adapter(None, monitor=service.monitor)
