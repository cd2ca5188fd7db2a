"""Through the admission whose part it is."""

import pytest
from known import in_flight, known

from resource_monitor.admission import Admission, Priority, Reason, Route


def lag(admission: Admission, lateness: float, since: float, until: float) -> None:
    """The event loop comes so late at every beat of that time."""
    now = since
    while now < until:
        now = min(until, now + 0.05 + lateness)
        admission.lagged(lateness, now)


def lagging(number: int = 10) -> tuple[Admission, Route]:
    """So many are in flight at a lagging event loop."""
    admission, route = Admission(0), known()
    in_flight(admission, route, number)
    lag(admission, 0.1, 1000.0, 1000.7)
    return admission, route


def test_a_loop_that_lags_has_its_work_cut_by_a_fifth() -> None:
    admission, route = lagging()
    assert admission.latency.cap == 8
    assert admission.decide(route, 0, 1001.0) is Reason.LATENCY
    for _ in range(3):
        admission.ends(route, 1001.0, lost=False, took=0.1)
    assert admission.decide(route, 0, 1001.0) is None
    assert admission.decide(route, 0, 1001.0) is Reason.LATENCY


def test_each_while_of_lag_cuts_again_but_never_below_one() -> None:
    admission, route = lagging()
    lag(admission, 0.1, 1000.7, 1001.3)
    assert admission.latency.cap == pytest.approx(6.4)
    lag(admission, 0.1, 1001.3, 1030.0)
    assert admission.latency.cap == 1
    for _ in range(10):
        admission.ends(route, 1030.0, lost=False, took=0.1)
    assert admission.decide(route, 0, 1030.0) is None


def test_work_that_went_meanwhile_is_not_what_is_cut() -> None:
    admission, route = lagging()
    for _ in range(5):
        admission.ends(route, 1000.8, lost=False, took=0.1)
    lag(admission, 0.1, 1000.7, 1001.8)
    assert admission.latency.cap == 4


def test_what_was_in_flight_in_the_mean_is_cut_and_not_what_is_at_the_moment() -> None:
    admission, route = Admission(0), known()
    in_flight(admission, route, 10)
    for at in (1000.15, 1000.3, 1000.45):
        admission.lagged(0.1, at)
    for _ in range(8):
        admission.ends(route, 1000.5, lost=False, took=0.1)
    admission.lagged(0.1, 1000.6)
    assert admission.latency.cap == pytest.approx(0.8 * (3 * 10 + 2) / 4)


def test_a_little_late_is_no_lag() -> None:
    admission = Admission(0)
    lag(admission, 0.05, 1000.0, 1010.0)
    assert admission.latency.cap is None


def test_one_late_beat_is_no_lag_be_it_the_first_or_after_idling() -> None:
    admission = Admission(0)
    admission.lagged(0.3, 1000.0)
    assert admission.latency.cap is None
    lag(admission, 0.0, 1000.0, 1001.0)
    admission.lagged(0.3, 1100.0)
    assert admission.latency.cap is None


def test_what_idles_does_not_lag_any_more() -> None:
    """Nobody looks then, and bursts that are short would never be looked at for long enough."""
    admission, route = Admission(0), known()
    in_flight(admission, route, 1)
    lag(admission, 0.3, 1000.0, 1001.0)
    assert admission.latency.cap == 1
    assert admission.decide(route, 0, 1001.1) is Reason.LATENCY
    admission.ends(route, 1001.1, lost=False, took=1.0)
    assert admission.decide(route, 0, 1001.2) is None
    assert admission.decide(route, 0, 1001.2) is Reason.LATENCY
    admission.ends(route, 1001.3, lost=False, took=0.1)
    for _ in range(6):
        assert admission.decide(route, 0, 1002.0) is None


def test_one_beat_that_comes_in_time_says_that_the_loop_does_not_lag() -> None:
    admission = Admission(0)
    now = 1000.0
    for beat in range(100):
        now += 0.15
        admission.lagged(0.0 if beat % 3 == 2 else 0.1, now)
    assert admission.latency.cap is None


def test_a_loop_that_was_stuck_for_long_lags() -> None:
    admission, route = Admission(0), known()
    in_flight(admission, route, 10)
    admission.lagged(2.0, 1002.0)
    assert admission.latency.cap == 8


def queue_of(admission: Admission, queued: int, accepted: int, since: float = 1000.0) -> None:
    """So many connections wait at every beat, none of which is late, and so many are accepted between two."""
    for beat in range(14):
        admission.lagged(0.0, since + 0.05 * beat, queued=queued, decided=beat * accepted)


def test_connections_that_wait_for_long_have_the_work_cut_a_little() -> None:
    admission = Admission(0)
    in_flight(admission, known(), 10)
    queue_of(admission, 32, 10)  # of 200 a second 32 wait, for 160 ms each
    assert admission.latency.cap == 9.5


def test_a_loop_that_is_late_as_well_is_cut_by_more() -> None:
    admission = Admission(0)
    in_flight(admission, known(), 10)
    for beat in range(12):
        admission.lagged(0.06, 1000.0 + 0.11 * beat, queued=100, decided=beat)
    assert admission.latency.cap is not None
    assert admission.latency.cap <= 8


def test_connections_that_are_accepted_soon_are_none() -> None:
    admission = Admission(0)
    in_flight(admission, known(), 10)
    queue_of(admission, 28, 10)
    assert admission.latency.cap is None


def test_connections_of_which_none_is_accepted_wait_for_long() -> None:
    admission = Admission(0)
    in_flight(admission, known(), 10)
    queue_of(admission, 4, 0)
    assert admission.latency.cap == 9.5


def test_other_processes_accept_as_many() -> None:
    admission = Admission(0)
    admission.read(1 << 30, 0, 999.0, others=1)
    in_flight(admission, known(), 10)
    queue_of(admission, 32, 10)
    assert admission.latency.cap is None
    queue_of(admission, 64, 10, since=1001.0)
    assert admission.latency.cap == 9.5


def test_what_waits_at_the_first_beat_has_no_rate_yet() -> None:
    admission = Admission(0)
    admission.lagged(0.0, 1000.0, queued=1000, decided=5)
    lag(admission, 0.0, 1000.0, 1001.0)
    assert admission.latency.cap is None


def test_other_classes_start_their_first_request_and_critical_ones_start_all() -> None:
    admission, route = lagging()
    ping = known()
    assert admission.decide(ping, 0, 1001.0) is None
    assert admission.decide(ping, 0, 1001.0) is Reason.LATENCY
    assert admission.decide(route, 0, 1001.0, priority=Priority.CRITICAL) is None
    assert admission.decide(route, 0, 1001.0, priority=Priority.SHEDDABLE) is Reason.LATENCY


def test_a_cap_that_binds_grows_by_steps_and_one_that_does_not_is_let_go() -> None:
    admission, route = lagging()
    assert admission.decide(route, 0, 1000.8) is Reason.LATENCY
    lag(admission, 0.0, 1000.7, 1001.3)
    assert admission.latency.cap == 9
    assert admission.decide(route, 0, 1001.4) is Reason.LATENCY
    lag(admission, 0.0, 1001.3, 1001.9)
    assert admission.latency.cap == 10
    lag(admission, 0.0, 1001.9, 1002.5)
    assert admission.latency.cap is None


def test_a_large_cap_grows_by_a_twentieth() -> None:
    admission, route = lagging(125)
    assert admission.decide(route, 0, 1000.8) is Reason.LATENCY
    lag(admission, 0.0, 1000.7, 1001.3)
    assert admission.latency.cap == pytest.approx(105)
