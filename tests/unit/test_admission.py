from collections.abc import Iterator

import pytest
from known import in_flight, known

from resource_monitor.admission import Admission, Learned, Pressure, Priority, Reason, Route

MIB = 1 << 20
COLD_COST = 12 * MIB


def started(admission: Admission, route: Route, left: int, now: float) -> int:
    """How many of the class may start now until one may not, for the reason that its class is new."""
    number = 0
    while (reason := admission.decide(route, left, now)) is None:
        number += 1
    assert reason is Reason.COLD_START
    return number


# --- the gate ---


def test_admits_down_to_the_floor_and_not_below() -> None:
    admission = Admission(100)
    assert admission.decide(known(), 101, 0.0) is None
    assert admission.decide(known(), 100, 0.0) is None
    assert admission.decide(known(), 99, 0.0) is Reason.MEMORY


def test_what_a_request_needs_must_be_left_above_the_floor() -> None:
    admission = Admission(100)
    assert admission.decide(known(), 130, 0.0, need=30) is None
    assert admission.decide(known(), 129, 0.0, need=30) is Reason.MEMORY


@pytest.mark.parametrize(
    ("lowest", "priority", "floor"),
    [
        (100, Priority.CRITICAL, 50),
        (20, Priority.CRITICAL, 20),
        (20, Priority.DEFAULT, 100),
        (20, Priority.SHEDDABLE, 200),
    ],
)
def test_what_matters_more_may_leave_less(lowest: int, priority: Priority, floor: int) -> None:
    admission = Admission(100, lowest=lowest)
    assert admission.decide(known(), floor, 0.0, priority=priority) is None
    assert admission.decide(known(), floor - 1, 0.0, priority=priority) is Reason.MEMORY


def test_only_what_starts_is_counted_in_flight() -> None:
    admission, route = Admission(100), known()
    assert admission.decide(route, 99, 0.0) is Reason.MEMORY
    assert (admission.in_flight, route.in_flight) == (0, 0)
    assert admission.decide(route, 100, 0.0) is None
    assert (admission.in_flight, route.in_flight) == (1, 1)
    admission.ends(route, 1.0, lost=True, took=0.1)
    assert (admission.in_flight, route.in_flight, route.lost) == (0, 0, 1)


def test_a_child_process_has_nothing_in_flight() -> None:
    admission, route, new = Admission(0), known(), Route()
    in_flight(admission, route, 3)
    whole = started(admission, new, 10 * COLD_COST, 0.0)
    admission.forget()
    assert (admission.in_flight, route.in_flight, new.in_flight) == (0, 0, 0)
    assert started(admission, new, 10 * COLD_COST, 0.0) == whole


# --- the cap on requests in flight ---


@pytest.mark.parametrize("priority", list(Priority))
def test_no_more_than_the_cap_are_in_flight_of_all_classes_together(priority: Priority) -> None:
    admission = Admission(0, max_in_flight=3)
    route, other = known(), known()
    in_flight(admission, other, 2)
    assert admission.decide(route, 0, 0.0, priority=priority) is None
    assert admission.decide(route, 0, 0.0, priority=priority) is Reason.IN_FLIGHT
    admission.ends(other, 1.0, lost=False, took=0.1)
    assert admission.decide(route, 0, 1.0, priority=priority) is None


def test_what_is_in_flight_elsewhere_counts_towards_the_cap() -> None:
    admission = Admission(0, max_in_flight=5)
    assert admission.decide(known(), 0, 0.0, elsewhere=4) is None
    assert admission.decide(known(), 0, 0.0, elsewhere=4) is Reason.IN_FLIGHT
    assert admission.decide(known(), 0, 0.0, elsewhere=3) is None


def test_without_a_cap_what_is_in_flight_elsewhere_refuses_nothing() -> None:
    assert Admission(0).decide(known(), 0, 0.0, elsewhere=10**6) is None


# --- cold start ---


def test_as_many_of_a_new_class_start_as_would_fit_if_each_were_large() -> None:
    assert started(Admission(0), Route(), 20 * COLD_COST, 0.0) == 20
    assert started(Admission(0), Route(), 5 * COLD_COST - 1, 0.0) == 4
    assert started(Admission(0), Route(), 0, 0.0) == 4


def test_a_place_comes_free_with_each_answer_not_with_the_end() -> None:
    admission, route = Admission(0), Route()
    started(admission, route, 10 * COLD_COST, 0.0)
    admission.answers(route)
    admission.answers(route)
    assert route.in_flight == 10
    assert started(admission, route, 10 * COLD_COST, 0.1) == 2


def test_four_times_as_many_may_start_once_as_many_were_answered() -> None:
    admission, route = Admission(0), Route()
    started(admission, route, 10 * COLD_COST, 0.0)
    for _ in range(9):
        admission.answers(route)
    assert started(admission, route, 10 * COLD_COST, 0.1) == 9
    admission.answers(route)
    assert started(admission, route, 10 * COLD_COST, 0.2) == 40 - 9


def test_twice_as_many_may_start_after_half_a_second_without_answers() -> None:
    admission, route = Admission(0), Route()
    started(admission, route, 10 * COLD_COST, 0.0)
    assert started(admission, route, 10 * COLD_COST, 0.49) == 0
    assert started(admission, route, 10 * COLD_COST, 0.5) == 10
    assert started(admission, route, 10 * COLD_COST, 0.99) == 0
    assert started(admission, route, 10 * COLD_COST, 1.0) == 20


def test_time_in_which_less_than_half_were_started_says_nothing() -> None:
    admission, route = Admission(0), Route()
    for second in range(4):
        assert admission.decide(route, 10 * COLD_COST, float(second)) is None
    assert started(admission, route, 10 * COLD_COST, 4.0) == 20 - 4


def test_time_without_any_request_says_nothing() -> None:
    admission, route = Admission(0), Route()
    assert admission.decide(route, 10 * COLD_COST, 0.0) is None
    admission.answers(route)
    assert started(admission, route, 10 * COLD_COST, 60.0) == 10


def test_twice_as_many_may_not_start_while_more_than_half_of_the_memory_is_used() -> None:
    for used, more in ((0.45, 10), (0.55, 0)):
        admission, route = Admission(0), Route()
        admission.read(20 * COLD_COST, 0, 0.0)
        assert started(admission, route, 10 * COLD_COST, 0.0) == 10
        admission.read(int((1 - used) * 20 * COLD_COST), int(used * 20 * COLD_COST), 0.4)
        assert started(admission, route, 10 * COLD_COST, 0.5) == more


def test_no_more_of_a_class_that_the_guard_cost_a_request_may_start_until_what_it_delivers_was_counted() -> None:
    admission, route = Admission(0), Route()
    started(admission, route, 10 * COLD_COST, 0.0)
    admission.answers(route)
    admission.ends(route, 0.1, lost=True, took=0.1)
    assert started(admission, route, 10 * COLD_COST, 0.6) == 1  # in its place
    for at in range(8):
        assert admission.decide(route, 10 * COLD_COST, 0.6) is Reason.COLD_START
        admission.ends(route, 0.6 + at / 10, lost=False, took=0.1)
    assert all(admission.decide(route, 10 * COLD_COST, 1.4) is None for _ in range(100))


def test_none_of_a_class_that_the_guard_cost_a_request_starts_without_being_asked_for_beyond_that() -> None:
    admission, route = Admission(0), Route()
    started(admission, route, 10 * COLD_COST, 0.0)
    admission.answers(route)
    admission.ends(route, 0.1, lost=True, took=0.1)
    route._measured = True
    grant = admission.grant(route, 10 * COLD_COST)
    assert grant is not None
    assert grant.unanswered == 1


def test_a_class_is_not_new_any_more_after_some_thousands() -> None:
    admission, route = Admission(0), Route()
    for second in range(40):
        while admission.decide(route, 10 * COLD_COST, float(second)) is None:
            admission.answers(route)
            admission.ends(route, second + 0.1, lost=False, took=0.1)
            if route._cold >= 4096:
                break
    assert all(admission.decide(route, 10 * COLD_COST, 60.0) is None for _ in range(30_000))


def test_what_others_learned_is_worth_a_start_of_ones_own() -> None:
    admission, route = Admission(0), known()
    assert all(admission.decide(route, 0, 0.0) is None for _ in range(1000))


def test_a_new_class_has_nothing_to_teach() -> None:
    admission, route = Admission(0), Route()
    started(admission, route, 10 * COLD_COST, 0.0)
    assert route.learned is None
    admission.ends(route, 0.1, lost=True, took=0.1)
    assert route.learned == Learned(None, 0.0, None, None)


def test_what_was_learned_is_what_another_begins_with() -> None:
    learned = Learned(floor=300.0, unseen=float(8 * MIB), rate=50.0, window=None)
    assert Route(learned).learned == learned


# --- classes' own floors ---


class Class:
    """A class of requests on a virtual clock, eight good ones a count."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.route = Route()
        self.now = 0.0

    def count(self, *, lost: int = 0) -> None:
        in_flight(self.admission, self.route, 8 + lost)
        for _ in range(lost):
            self.admission.ends(self.route, self.now, lost=True, took=0.1)
        for at in range(8):
            self.admission.ends(self.route, self.now + 0.3 * at / 7, lost=False, took=0.1)
        self.now += 0.3

    def counts(self, number: int) -> Iterator[float]:
        for _ in range(number):
            self.count()
            yield self.floor

    @property
    def floor(self) -> float:
        return self.admission.floor_of(self.route)


def test_a_class_that_loses_nothing_may_leave_less_and_less_down_to_the_lowest() -> None:
    work = Class(Admission(1000, lowest=200))
    assert work.floor == 1000
    floors = list(work.counts(20))
    on_the_way = [floor for floor in floors if floor > 200]
    assert 4 < len(on_the_way) < 16
    assert on_the_way == sorted(set(on_the_way), reverse=True)
    assert set(floors[len(on_the_way) :]) == {200}
    assert work.admission.decide(work.route, 199, work.now) is Reason.MEMORY
    assert work.admission.decide(work.route, 200, work.now) is not Reason.MEMORY


def test_a_class_whose_requests_come_one_after_another_is_counted_too() -> None:
    admission, route = Admission(1000, lowest=200), known()
    for request in range(40):
        assert admission.decide(route, 1000, request / 10) is None
        admission.ends(route, request / 10 + 0.05, lost=False, took=0.1)
    assert admission.floor_of(route) < 900


def test_a_loss_counts_however_long_the_floor_was_the_lowest() -> None:
    work = Class(Admission(1000, lowest=200))
    list(work.counts(40))
    in_flight(work.admission, work.route, 1)
    work.admission.ends(work.route, work.now, lost=True, took=0.1)
    assert work.floor > 200


def test_each_loss_puts_the_floor_up() -> None:
    work = Class(Admission(1000, lowest=200))
    before, after = list(work.counts(2))
    for _ in range(3):
        in_flight(work.admission, work.route, 1)
        work.admission.ends(work.route, work.now, lost=True, took=0.1)
        after, before = work.floor, after
        assert before < after <= 1000


def test_a_class_that_has_lost_something_gets_its_floor_down_more_slowly() -> None:
    unhurt, hurt = Class(Admission(1000, lowest=200)), Class(Admission(1000, lowest=200))
    list(unhurt.counts(3))
    in_flight(hurt.admission, hurt.route, 1)
    hurt.admission.ends(hurt.route, hurt.now, lost=True, took=0.1)
    list(hurt.counts(3))
    assert unhurt.floor < hurt.floor < 1000


def test_losses_never_put_a_floor_above_that_of_all() -> None:
    work = Class(Admission(1000, lowest=200))
    list(work.counts(1))
    in_flight(work.admission, work.route, 50)
    for _ in range(50):
        work.admission.ends(work.route, work.now, lost=True, took=0.1)
    assert work.floor == work.route.floor == 1000


def test_one_class_loses_nothing_of_its_floor_by_another() -> None:
    admission = Admission(1000, lowest=200)
    light, heavy = Class(admission), Class(admission)
    list(light.counts(20))
    in_flight(admission, light.route, 8)
    for _ in range(3):
        heavy.count(lost=8)
    assert light.floor == 200
    assert heavy.floor > 900


def test_a_paced_class_leaves_no_more_than_the_lowest_while_it_prevails() -> None:
    """For its pace, not the floor, answers to what it loses."""
    admission = Admission(1000, lowest=200)
    other, unseen, paced = (known(unseen, rate=rate) for unseen, rate in ((0.0, None), (float(MIB), 10.0), (0.0, 10.0)))
    assert [admission.floor_of(route) for route in (other, unseen, paced)] == [1000, 1000, 200]
    assert admission.floor_of(paced, patient=True) == 1000
    assert admission.decide(paced, 999, 0.0, patient=True) is Reason.MEMORY
    assert admission.decide(paced, 200, 0.0) is not Reason.MEMORY
    admission.forget()
    in_flight(admission, other, 1)
    assert admission.floor_of(paced) == 1000
    in_flight(admission, paced, 3)
    assert admission.floor_of(paced) == 200


def test_a_class_that_lost_some_before_it_was_measured_fills_memory_again_while_the_first_ones_leave_it() -> None:
    """What starts meanwhile takes its memory when these are gone, and a loss says that the guard sees what it takes."""
    admission, route = Admission(1000, lowest=200), Route()
    for _ in range(3):
        assert admission.decide(route, 1000, 0.0) is None
    assert admission.floor_of(route) == 1000
    admission.ends(route, 0.1, lost=True, took=0.1)
    assert admission.floor_of(route) == 200
    assert admission.floor_of(route, Priority.SHEDDABLE) == 400
    assert admission.floor_of(route, patient=True) == 1000
    # nor where most of what is in flight is not of this class, or what the guard does not see is known to be taken
    other = known()
    in_flight(admission, other, 1)
    assert admission.floor_of(route) == 1000
    admission.ends(other, 0.1, lost=False, took=0.1)
    route.unseen = float(MIB)
    assert admission.floor_of(route) == 1000
    route.unseen = 0.0
    in_flight(admission, route, 7)
    for _ in range(8):
        admission.ends(route, 0.2, lost=False, took=0.1)
    assert admission.floor_of(route) == 1000


def test_where_the_user_set_the_floor_no_class_has_one_of_its_own() -> None:
    work = Class(Admission(1000))
    list(work.counts(20))
    assert work.route.floor is None
    assert work.floor == 1000


def test_a_class_that_takes_memory_unseen_leaves_five_eighths_at_the_least() -> None:
    admission = Admission(1000, lowest=200)
    route = known(float(MIB), floor=200.0)
    assert admission.floor_of(route) == 625
    assert admission.floor_of(known(float(MIB))) == 1000


def test_a_near_miss_puts_its_floor_back() -> None:
    admission = Admission(16 * MIB, lowest=3 * MIB)
    route = known(float(MIB), floor=float(3 * MIB))
    in_flight(admission, route, 4)
    admission.read(40 * MIB, 0, 0.0)
    admission.read(9 * MIB, 0, 1.0)
    assert admission.floor_of(route) == 10 * MIB
    admission.read(7 * MIB, 0, 2.0)
    assert admission.floor_of(route) == 16 * MIB


def test_as_many_as_were_carried_may_be_in_flight_again_down_to_the_lowest() -> None:
    """What others left with the allocator is there for the next, though no reading shows it."""
    admission, route = Admission(1000, lowest=200), known(floor=800.0)
    for _ in range(5):
        assert admission.decide(route, 900, 0.0) is None
    assert admission.decide(route, 300, 0.0) is Reason.MEMORY
    for _ in range(2):
        admission.ends(route, 0.1, lost=False, took=0.1)
    assert admission.decide(route, 199, 0.1) is Reason.MEMORY
    assert admission.decide(route, 300, 0.1) is None
    assert admission.decide(route, 300, 0.1) is Reason.MEMORY
    # not among others, nor once one was lost with no more in flight
    other = known()
    in_flight(admission, other, 3)
    admission.ends(route, 0.1, lost=False, took=0.1)
    assert admission.decide(route, 300, 0.1) is Reason.MEMORY
    for _ in range(3):
        admission.ends(other, 0.1, lost=False, took=0.1)
    assert admission.decide(route, 300, 0.1) is None
    admission.ends(route, 0.1, lost=True, took=0.1)
    assert admission.decide(route, 300, 0.1) is Reason.MEMORY


def test_but_not_before_it_has_a_floor_of_its_own() -> None:
    admission, route = Admission(1000, lowest=200), known()
    for _ in range(5):
        assert admission.decide(route, 1000, 0.0) is None
    for _ in range(2):
        admission.ends(route, 0.1, lost=False, took=0.1)
    assert admission.decide(route, 999, 0.1) is Reason.MEMORY


def test_sheddable_requests_leave_twice_their_class_s_floor() -> None:
    work = Class(Admission(1000, lowest=200))
    list(work.counts(20))
    assert work.admission.floor_of(work.route, Priority.SHEDDABLE) == 400
    assert work.admission.floor_of(work.route, Priority.CRITICAL) == 200


def test_a_limit_lowered_at_run_time_lowers_the_floors_of_classes_too() -> None:
    work = Class(Admission(1000, lowest=200))
    work.count(lost=1)
    work.admission.floor, work.admission.lowest = 300, 60
    assert work.floor == 300
    work.admission.floor, work.admission.lowest = 4000, 1500
    assert work.floor == 1500


# --- the state ---


def test_only_the_first_refusal_begins_a_time_of_shedding() -> None:
    admission = Admission(100)
    assert admission.pressure is Pressure.OK
    assert admission.refused(10.0)
    assert admission.pressure is Pressure.SHEDDING
    assert not admission.refused(10.5)


def test_shedding_ends_once_nothing_was_refused_for_a_second() -> None:
    admission = Admission(100)
    admission.refused(10.0)
    admission.refused(10.5)
    assert not admission.admitted(1000, 11.4)
    assert admission.pressure is Pressure.SHEDDING
    assert admission.admitted(1000, 11.5)
    assert admission.pressure is Pressure.OK
    assert not admission.admitted(1000, 11.6)


def test_shedding_that_ends_where_memory_is_scarce_leaves_an_elevated_pressure() -> None:
    admission = Admission(100)
    admission.refused(10.0)
    assert admission.admitted(150, 11.0)
    assert admission.pressure is Pressure.ELEVATED


def test_an_admission_ends_nothing_that_has_not_begun() -> None:
    assert not Admission(100).admitted(1000, 10.0)


def test_pressure_is_elevated_below_two_floors() -> None:
    admission = Admission(100)
    admission.admitted(200, 10.0)
    assert admission.pressure is Pressure.OK
    admission.admitted(199, 10.0)
    assert admission.pressure is Pressure.ELEVATED


def test_pressure_stays_elevated_until_two_and_a_half_floors_were_left_for_a_second() -> None:
    admission = Admission(100)
    admission.admitted(199, 10.0)
    admission.admitted(249, 20.0)
    assert admission.pressure is Pressure.ELEVATED
    admission.admitted(250, 20.9)
    assert admission.pressure is Pressure.ELEVATED
    admission.admitted(250, 21.0)
    assert admission.pressure is Pressure.OK
    admission.admitted(249, 22.0)
    assert admission.pressure is Pressure.OK
