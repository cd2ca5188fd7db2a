"""When a service is ready, on a virtual clock."""

import random
from itertools import pairwise

import pytest
from machine import Clock

from resource_monitor.middleware.readiness import Readiness

DWELL = 5.0


class Probed:
    """A service whose readiness is asked for."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.readiness = Readiness(DWELL)
        self.left: int | None = None
        self.refused_at: float | None = None

    def refuse(self) -> None:
        self.refused_at = self.clock.now

    def ready(self) -> bool:
        age = None if self.refused_at is None else self.clock.now - self.refused_at
        return self.readiness.look(
            self.clock.now,
            left=self.left,
            enter=100,
            exit=150,
            shedding=age is not None and age < 1,
            refusal_age=age,
        )

    def ready_after(self, seconds: float) -> bool:
        self.clock.pass_(seconds)
        return self.ready()


@pytest.fixture
def service(clock: Clock) -> Probed:
    return Probed(clock)


def test_a_service_that_never_refused_anything_is_ready(service: Probed) -> None:
    assert service.ready()


def test_a_service_that_sheds_is_not_ready_until_it_has_not_for_the_dwell(service: Probed) -> None:
    service.refuse()
    assert not service.ready()
    assert not service.ready_after(DWELL - 0.1)
    assert service.ready_after(0.2)


def test_each_refusal_begins_the_dwell_anew(service: Probed) -> None:
    for _ in range(10):
        service.refuse()
        assert not service.ready_after(DWELL - 1)
    assert service.ready_after(1.1)


def test_a_refusal_that_no_probe_came_across_counts_all_the_same(service: Probed) -> None:
    assert service.ready()
    service.refuse()
    assert not service.ready_after(3)


def test_what_was_refused_long_before_a_probe_does_not_count(service: Probed) -> None:
    service.refuse()
    assert service.ready_after(DWELL + 0.1)


def test_nothing_but_the_probe_has_to_come_for_it_to_be_ready_again(service: Probed) -> None:
    service.refuse()
    found = [service.ready_after(1) for _ in range(10)]
    assert found == [False] * 4 + [True] * 6


def test_too_little_memory_makes_it_unready_and_enough_for_the_dwell_ready_again(service: Probed) -> None:
    service.left = 100
    assert service.ready()
    service.left = 99
    assert not service.ready_after(1)
    service.left = 150
    assert not service.ready_after(DWELL - 0.1)
    assert service.ready_after(0.2)


def test_between_the_thresholds_it_stays_as_it_is(service: Probed) -> None:
    service.left = 120
    assert service.ready()
    service.left = 99
    assert not service.ready()
    service.left = 149
    assert not service.ready_after(100)
    service.left = 150
    assert service.ready_after(DWELL)
    service.left = 120
    assert service.ready_after(100)


def test_around_one_threshold_it_does_not_flap(service: Probed) -> None:
    dice = random.Random(1)
    states = []
    for _ in range(1000):
        service.left = 100 + dice.randint(-40, 40)
        states.append(service.ready_after(1))
    assert sum(before != after for before, after in pairwise(states)) <= 1


def test_memory_that_cannot_be_read_is_no_trouble(service: Probed) -> None:
    service.left = None
    assert service.ready()


def test_without_a_dwell_it_follows_at_once(clock: Clock) -> None:
    readiness = Readiness(0)
    assert not readiness.look(clock.now, shedding=True, refusal_age=0.5)
    assert readiness.look(clock.now, shedding=False, refusal_age=1.0)
