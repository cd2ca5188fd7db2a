"""Options of waiting and of bodies that cannot be meant."""

from typing import Any, get_type_hints

import pytest
from machine import Service

from resource_monitor.errors import ConfigurationError
from resource_monitor.middleware.gate import Gate
from resource_monitor.middleware.options import Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_wait": -1}, "max_wait=-1 is no time to wait; give seconds, from 0 to 3600."),
        ({"max_wait": 3601}, "max_wait=3601 is no time to wait; give seconds, from 0 to 3600."),
        ({"max_wait": float("nan")}, "max_wait=nan is no time to wait; give seconds, from 0 to 3600."),
        ({"max_wait": True}, "max_wait=True is no time to wait; give seconds, from 0 to 3600."),
        ({"max_wait": None}, "max_wait=None is no time to wait; give seconds, from 0 to 3600."),
        ({"body_timeout": "5s"}, "body_timeout='5s' is no time to wait; give seconds, from 0 to 3600."),
        (
            {"max_body": "much"},
            "max_body='much' is no size of a body; give bytes as a number, a size such as \"10MiB\", or None.",
        ),
        (
            {"max_body": -1},
            'max_body=-1 is no size of a body; give bytes as a number, a size such as "10MiB", or None.',
        ),
        (
            {"max_body": "5%"},
            "max_body='5%' is no size of a body; give bytes as a number, a size such as \"10MiB\", or None.",
        ),
        ({"dry_run": "yes"}, "dry_run='yes' is neither true nor false; give one of them."),
        ({"dry_run": None}, "dry_run=None is neither true nor false; give one of them."),
        ({"allocation_guard": 1}, "allocation_guard=1 is neither true, false nor none; give one of them."),
        ({"status": 500}, "status=500 is no status for want of memory; give 503 or 429."),
        ({"on_shed": 5}, "on_shed=5 cannot be called; give a function of the Shed."),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused_in_one_sentence(
    service: Service, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError) as e:
        Gate(monitor=service.monitor, **options)
    assert str(e.value) == message


def test_what_can_be_meant_is_taken(service: Service) -> None:
    gate = Gate(monitor=service.monitor, max_wait=0.5, max_body="1MiB", body_timeout=0)
    assert (gate.max_wait, gate.max_body, gate.body_timeout) == (0.5, 1 << 20, 0.0)


def test_the_adapters_take_every_option_of_the_gate() -> None:
    assert set(get_type_hints(Options)) == set(get_type_hints(Gate.__init__)) - {"names", "return"}
