"""Memory that the allocation guard does not see: what readings tell of it, and what that does on a virtual clock."""

import random

import pytest
from known import in_flight, known
from simulated import LOWEST, MB, Job, Service, Step, poisson

from resource_monitor.admission import Admission, Priority, Reason, Route

FLOOR = 16 * MB
LEAST = 1 << 17
LOADED = FLOOR // 2


def busy(*routes: tuple[Route, int]) -> Admission:
    """So many of each class are in flight, what the first ones load is loaded, and 200 MB are left."""
    admission = Admission(FLOOR)
    for route, number in routes:
        in_flight(admission, route, number)
    admission.read(200 * MB + LOADED, 0, -1.0)
    admission.read(200 * MB, 0, 0.0)
    return admission


def end(admission: Admission, route: Route, number: int, now: float, *, took: float = 0.1) -> None:
    for _ in range(number):
        admission.answers(route)
        admission.ends(route, now, lost=False, took=took)


def wanted(admission: Admission, route: Route) -> int:
    """Beyond the floor."""
    return admission.wants(route, 0, Priority.DEFAULT) - FLOOR


# --- what grew unseen ---


def test_what_grew_beyond_what_the_guard_let_pass_was_taken_unseen() -> None:
    route = known()
    busy((route, 4)).read(192 * MB, 0, 1.0)
    assert route.unseen == 2 * MB


def test_what_first_grows_while_requests_are_in_flight_is_what_they_load() -> None:
    admission, route = Admission(FLOOR), known()
    admission.read(200 * MB, 0, 0.0)
    admission.read(190 * MB, 0, 1.0)  # nobody's
    for _ in range(4):
        admission.starts(route)
    admission.read(190 * MB - LOADED, 0, 2.0)
    assert route.unseen == 0
    admission.read(182 * MB - LOADED, 0, 3.0)
    assert route.unseen == 2 * MB


def test_what_the_guard_let_pass_was_not_taken_unseen() -> None:
    route = known()
    admission = busy((route, 4))
    admission.read(192 * MB, 8 * MB, 1.0)
    assert route.unseen == 0
    admission.read(176 * MB, 16 * MB, 2.0)
    assert route.unseen == 2 * MB


def test_a_new_class_whose_memory_the_guard_sees_is_new_no_longer() -> None:
    admission, route, ping = Admission(0), Route(), Route()
    admission.read(200 * MB, 0, 0.0)
    while admission.decide(route, 200 * MB, 0.0) is None:
        pass
    before = route.in_flight
    admission.read(200 * MB - before * LEAST // 2, before * LEAST // 2, 0.2)  # too little to say anything
    assert admission.decide(route, 200 * MB, 0.2) is Reason.COLD_START
    admission.read(180 * MB, 20 * MB, 0.4)
    assert admission.decide(route, 180 * MB, 0.4) is None
    while admission.decide(ping, 180 * MB, 0.4) is None:
        pass
    assert ping.in_flight < before  # which was not in flight then


def test_what_the_guard_let_pass_may_show_a_moment_later() -> None:
    route = known()
    admission = busy((route, 4))
    admission.read(200 * MB, 8 * MB, 0.01)
    admission.read(192 * MB, 8 * MB, 0.02)
    assert route.unseen == 0


def test_half_of_what_passed_shows_within_a_quarter_of_a_second_or_never() -> None:
    route = known()
    admission = busy((route, 4))
    admission.read(200 * MB, 8 * MB, 0.25)
    admission.read(192 * MB, 8 * MB, 0.26)
    assert route.unseen == pytest.approx(1 * MB)


def test_memory_that_is_given_back_while_as_much_passes_will_not_show_later() -> None:
    route = known()
    admission = busy((route, 4))
    admission.read(208 * MB, 0, 0.01)
    admission.read(200 * MB, 0, 0.02)
    assert route.unseen == 2 * MB


def test_small_steps_add_up_to_what_is_no_noise() -> None:
    route = known()
    admission = busy((route, 1))
    for step in range(1, 6):
        admission.read(200 * MB - step * MB // 2, 0, step / 100)
    assert route.unseen >= 1.5 * MB


def test_less_than_a_mebibyte_in_a_quarter_of_a_second_is_noise() -> None:
    route = known()
    admission = busy((route, 1))
    for step in range(1, 10):
        admission.read(200 * MB - step * MB, 0, step * 0.3)
    assert route.unseen == 0


def test_what_grows_while_nothing_is_in_flight_is_nobody_s() -> None:
    admission, route = Admission(FLOOR), known()
    admission.read(200 * MB, 0, 0.0)
    admission.read(150 * MB, 0, 1.0)
    admission.starts(route)
    admission.read(150 * MB, 0, 2.0)
    assert route.unseen == 0


def test_the_first_reading_tells_of_no_growth() -> None:
    admission, route = Admission(FLOOR), known()
    admission.starts(route)
    admission.read(10 * MB, 0, 1.0)
    assert route.unseen == 0


def test_a_child_process_is_put_down_nothing_of_what_its_parent_took() -> None:
    route = known()
    admission = busy((route, 4))
    admission.read(192 * MB, 0, 1.0)
    admission.forget()
    admission.starts(route)
    assert admission.unshown() == 2 * MB


# --- whose it is ---


def test_classes_of_which_nothing_is_known_share_by_number() -> None:
    one, three = known(), known()
    busy((one, 1), (three, 3)).read(192 * MB, 0, 1.0)
    assert one.unseen == three.unseen == 2 * MB


def test_growth_is_put_down_to_classes_by_what_they_are_known_to_take() -> None:
    large, small = known(6 * MB), known(2 * MB)
    admission = busy((large, 2), (small, 2))
    admission.read(168 * MB, 0, 1.0)
    assert (large.unseen, small.unseen) == (12 * MB, 4 * MB)


def test_pings_are_not_blamed_for_jobs() -> None:
    job, ping = known(32 * MB), known()
    admission = busy((job, 1), (ping, 4))
    for second in range(1, 30):
        admission.read(200 * MB - 32 * MB * (second % 2), 0, float(second))
    assert ping.unseen == 0


def test_less_than_some_kilobytes_a_request_is_nothing() -> None:
    route = known()
    busy((route, 20)).read(200 * MB - 20 * LEAST + 20, 0, 1.0)
    assert route.unseen == 0
    route = known()
    busy((route, 20)).read(200 * MB - 20 * LEAST, 0, 1.0)
    assert route.unseen == LEAST


def test_one_growth_may_be_chance_and_says_no_more_than_a_floor() -> None:
    route = known()
    admission = busy((route, 1))
    admission.read(100 * MB, 0, 1.0)
    assert route.unseen == FLOOR
    admission.read(90 * MB, 0, 2.0)
    assert route.unseen == 2 * FLOOR


def test_the_most_that_was_seen_is_what_counts() -> None:
    route = known(8 * MB)
    busy((route, 4)).read(192 * MB, 0, 1.0)
    assert route.unseen == 8 * MB


def test_a_near_miss_says_that_it_is_more() -> None:
    route = known()
    admission = busy((route, 2))
    admission.read(8 * MB, 0, 0.1)
    assert route.unseen == FLOOR
    admission.read(6 * MB, 0, 0.2)
    assert route.unseen == pytest.approx(2 * FLOOR * 1.3)


def test_one_near_miss_a_count_is_enough() -> None:
    route = known(40.0 * MB)
    admission = busy((route, 18))
    for step in range(1, 4):
        admission.read(8 * MB - step * 2 * MB, 0, step / 10)
    assert route.unseen == pytest.approx(40 * MB * 1.3)
    for answer in range(8):
        admission.ends(route, 1 + answer / 10, lost=False, took=0.1)
    assert route.unseen == pytest.approx(40 * MB * 1.3 * 0.995)
    admission.read(0, 0, 2.0)
    assert route.unseen == pytest.approx(40 * MB * 1.3 * 0.995 * 1.3)


def test_what_was_seen_fades_with_every_count_until_it_is_nothing() -> None:
    route = known(8.0 * MB)
    admission = Admission(FLOOR)
    now = 0.0
    for count in range(1, 4):
        for _ in range(8):
            admission.starts(route)
        for answer in range(8):
            admission.ends(route, now + 0.3 * answer / 7, lost=False, took=0.1)
        now += 0.3
        assert route.unseen == pytest.approx(8 * MB * 0.995**count)
    route.unseen = LEAST
    for _ in range(8):
        admission.starts(route)
    for answer in range(8):
        admission.ends(route, now + 0.3 * answer / 7, lost=False, took=0.1)
    assert route.unseen == 0


# --- other processes on the same memory ---


class Neighbours:
    """Two processes read one memory, with so many requests in flight elsewhere; a second passes between readings."""

    def __init__(self, admission: Admission, *, elsewhere: int = 0) -> None:
        self.admission = admission
        self.elsewhere = elsewhere
        self.now = 0.0
        for _ in range(3):
            self.read(200 * MB, 0)

    def read(self, headroom: int, passed: int, *, others: int = 1, seconds: float = 1.0) -> None:
        self.now += seconds
        self.admission.read(headroom, passed, self.now, others=others, elsewhere=self.elsewhere)


def test_what_grew_is_shared_with_what_is_in_flight_elsewhere() -> None:
    route = known()
    both = Neighbours(busy((route, 4)), elsewhere=12)
    both.read(168 * MB, 0)
    both.read(168 * MB, 0)
    assert route.unseen == 2 * MB


def test_what_others_let_pass_may_be_told_after_it_shows() -> None:
    route = known()
    both = Neighbours(busy((route, 4)))
    both.read(192 * MB, 0)
    both.read(192 * MB, 8 * MB)
    both.read(192 * MB, 8 * MB)
    assert route.unseen == 0


def test_what_passed_since_the_reading_that_is_looked_at_fades_only_after_it_could_show() -> None:
    route = known()
    both = Neighbours(busy((route, 4)))
    both.read(192 * MB, 8 * MB)
    both.read(192 * MB, 8 * MB)
    assert route.unseen == 0
    both.read(192 * MB, 16 * MB)
    both.read(192 * MB, 16 * MB, seconds=10)
    both.read(184 * MB, 16 * MB)
    both.read(184 * MB, 16 * MB)
    assert route.unseen == pytest.approx(2 * MB, rel=0.01)


def test_the_first_reading_beside_others_is_taken_with_what_had_passed_by_then() -> None:
    admission, route = busy(), known()
    for _ in range(4):
        admission.starts(route)
    admission.read(200 * MB, 0, 1.0, others=1)
    admission.read(168 * MB, 32 * MB, 2.0, others=1)
    admission.read(168 * MB, 32 * MB, 3.0, others=1)
    assert route.unseen == 0


def test_workers_share_what_may_be_unanswered_of_a_new_class() -> None:
    admission, route = Admission(0), Route()
    admission.read(200 * MB, 0, 0.0, others=3)
    started = 0
    while admission.decide(route, 20 * (12 << 20), 0.0) is None:
        started += 1
    assert started == 5


def test_readings_that_follow_too_quickly_for_the_others_to_tell_are_left_out() -> None:
    route = known()
    both = Neighbours(busy((route, 4)))
    both.read(192 * MB, 0, seconds=0.2)
    both.read(184 * MB, 0, seconds=0.05)
    both.read(192 * MB, 8 * MB, seconds=0.2)
    both.read(192 * MB, 8 * MB)
    assert route.unseen == 0


def test_what_a_process_let_pass_that_ended_was_not_given_back_unseen() -> None:
    route = known()
    both = Neighbours(busy((route, 4)))
    both.read(200 * MB, 500 * MB)
    both.read(200 * MB, 20 * MB, others=0)
    both.read(200 * MB, 20 * MB, others=0)
    assert route.unseen == 0


def test_nor_was_that_of_one_in_whose_place_another_is() -> None:
    admission, route = Admission(16 * MB), known()
    for _ in range(4):
        admission.starts(route)
    for generation, passed in ((1, 500 * MB), (2, 20 * MB)):
        for at in range(3):
            admission.read(200 * MB, passed, generation + at / 4, others=1, generation=generation)
    assert route.unseen == 0


def test_what_a_process_let_pass_before_it_was_known_will_not_show_now() -> None:
    route = known()
    both = Neighbours(busy((route, 4)))
    both.read(200 * MB, 500 * MB, others=2)
    both.read(168 * MB, 500 * MB, others=2, seconds=0.2)
    both.read(168 * MB, 500 * MB, others=2, seconds=0.2)
    assert route.unseen == 8 * MB


# --- what must be left ---


def test_what_requests_will_take_yet_must_be_left_for_them_and_the_next() -> None:
    route, other = known(8 * MB), known()
    admission = busy((route, 3))
    assert wanted(admission, route) == (3 + 1) * 8 * MB
    assert wanted(admission, other) == 3 * 8 * MB
    assert admission.decide(route, FLOOR + 32 * MB - 1, 1.0) is Reason.MEMORY
    assert admission.decide(route, FLOOR + 32 * MB, 1.0) is None


def test_what_shows_need_not_be_left_any_more() -> None:
    route = known(8 * MB)
    admission = busy((route, 3))
    admission.read(184 * MB, 0, 1.0)
    assert wanted(admission, route) == (1 + 1) * 8 * MB
    admission.read(176 * MB, 0, 2.0)
    assert wanted(admission, route) == 8 * MB


def test_what_is_given_back_is_not_taken_for_that_of_who_is_still_there() -> None:
    route = known(8 * MB)
    admission = busy((route, 3))
    admission.read(176 * MB, 0, 1.0)
    end(admission, route, 1, 1.1)
    admission.read(184 * MB, 0, 1.2)
    assert wanted(admission, route) == 8 * MB
    admission.starts(route)
    assert wanted(admission, route) == 2 * 8 * MB


def test_what_is_seen_besides_is_given_back_too() -> None:
    """Each takes 8 MB unseen and 2 MB that the guard lets pass, and gives back all of it."""
    route, left, passed = known(8 * MB), 100 * MB, 20 * MB
    admission = busy((route, 10))
    admission.read(left, passed, 1.0)
    assert admission.unshown() == 0
    for turn in range(1, 101):
        end(admission, route, 1, turn * 1.0)
        left += 10 * MB
        admission.read(left, passed, turn + 1.3)
        admission.starts(route)
        left, passed = left - 10 * MB, passed + 2 * MB
        admission.read(left, passed, turn + 1.6)
        assert admission.unshown() < 4 * MB
        route.unseen = 8.0 * MB  # as if it were learned anew all the time


def test_those_that_are_left_took_no_more_than_all_of_theirs() -> None:
    """So that what is never given back does not pass for what the next ones took."""
    route = known(8 * MB)
    admission = busy((route, 4))
    admission.read(140 * MB, 0, 1.0)  # 60 MB, of which they take 32 at the most
    route.unseen = 8.0 * MB
    end(admission, route, 1, 1.1)
    admission.read(148 * MB, 0, 1.4)
    assert admission.unshown() == 0
    admission.starts(route)
    assert admission.unshown() == 8 * MB


def unseen_after_a_count(taken: int, *, in_flight: int = 16, beside: int = 0, took: float = 0.1) -> float:
    """As a part of before, once the class was counted that took so many bytes in all."""
    route, other = known(2 * MB), known()
    admission = busy((route, in_flight), (other, beside))
    admission.read(150 * MB - taken, 50 * MB, 1.0)
    end(admission, route, 1, 1.1, took=took)
    end(admission, route, min(4, in_flight // 2), 2.2, took=took)
    assert route._delivered is not None  # it was counted
    return route.unseen / (2 * MB)


def test_what_hardly_shows_was_loaded_by_the_first_ones_and_is_halved_at_each_count() -> None:
    assert unseen_after_a_count(2 * MB) == 0.5
    assert unseen_after_a_count(8 * MB) > 0.99


def test_a_count_that_is_shorter_than_a_request_says_nothing_of_what_is_taken_late() -> None:
    assert unseen_after_a_count(0, took=1.0) == 0.5
    assert unseen_after_a_count(0, took=30.0) > 0.99


@pytest.mark.parametrize(("took", "halved"), [(0.1, True), (3.0, False)])
def test_what_showed_before_the_last_count_is_past_if_that_lasted_a_request(took: float, halved: bool) -> None:
    route = known(2 * MB)
    admission = busy((route, 32))
    admission.read(192 * MB, 0, 1.0)
    end(admission, route, 1, 1.1, took=took)
    end(admission, route, 4, 2.2, took=took)
    assert route.unseen > 1.98 * MB
    admission.read(200 * MB, 0, 2.3)
    end(admission, route, 1, 7.3, took=took)
    assert (route.unseen < 1.0 * MB) == halved
    admission.read(200 * MB, 0, 8.0)
    end(admission, route, 1, 12.4, took=took)
    assert route.unseen < 1.0 * MB


def test_of_few_or_among_others_it_is_not_told_by_that() -> None:
    assert unseen_after_a_count(0, in_flight=16) == 0.5
    assert unseen_after_a_count(0, in_flight=16, beside=16) > 0.99
    assert unseen_after_a_count(0, in_flight=4) > 0.99


def test_what_is_given_back_is_shared_by_what_was_taken() -> None:
    large, small = known(12 * MB), known(4 * MB)
    admission = busy((large, 1), (small, 1))
    admission.read(184 * MB, 0, 1.0)
    assert admission.unshown() == 0
    admission.read(192 * MB, 0, 2.0)
    assert admission.unshown() == 8 * MB
    end(admission, large, 1, 2.1)
    assert admission.unshown() == 2 * MB


def test_a_class_of_which_nothing_is_in_flight_has_taken_nothing() -> None:
    route, other = known(8 * MB), known()
    admission = busy((route, 1), (other, 1))
    admission.read(192 * MB, 0, 1.0)
    end(admission, route, 1, 1.1)
    admission.starts(route)
    assert admission.unshown() == pytest.approx(8 * MB, rel=0.05)


def test_the_only_request_may_start_however_much_its_class_takes() -> None:
    route = known(500 * MB)
    assert Admission(FLOOR).decide(route, FLOOR, 1.0) is None


def refused(admission: Admission, route: Route, *times: float) -> None:
    for now in times:
        assert admission.decide(route, FLOOR, now) is Reason.MEMORY


def test_a_class_that_is_refused_for_long_while_nothing_ends_is_thought_half_as_large() -> None:
    route = known(64.0 * MB)
    admission = busy((known(), 1))
    refused(admission, route, 100.0, 104.9)
    assert route.unseen == 64 * MB
    refused(admission, route, 105.0, 109.9)
    assert route.unseen == 32 * MB
    refused(admission, route, 110.0)
    assert route.unseen == 16 * MB
    assert admission.decide(route, FLOOR + 16 * MB, 110.0) is None


def test_the_request_with_which_its_class_is_thought_smaller_starts_if_it_fits_then() -> None:
    route = known(64.0 * MB)
    admission = busy((known(), 1))
    assert admission.decide(route, FLOOR + 32 * MB, 100.0) is Reason.MEMORY
    assert admission.decide(route, FLOOR + 32 * MB, 105.0) is None


def test_a_class_is_not_thought_smaller_for_what_was_before_it_idled() -> None:
    route = known(8.0 * MB)
    admission = busy((route, 3))
    end(admission, route, 3, 1.0)
    admission.starts(route)
    refused(admission, route, 60.0)
    assert route.unseen == 8 * MB


def test_while_requests_start_and_end_a_class_is_not_thought_smaller() -> None:
    route = known(8.0 * MB)
    admission = busy((route, 2))
    refused(admission, route, 100.0, 104.0)
    end(admission, route, 1, 104.5)
    refused(admission, route, 105.0, 109.9)
    admission.starts(route)
    refused(admission, route, 110.0, 114.9)
    assert route.unseen == 8 * MB


# --- a new class ---


def test_time_in_which_memory_grows_unseen_makes_no_class_less_new() -> None:
    admission, route = Admission(0), Route()
    room = 10 * (12 << 20)
    admission.read(room, 0, 0.0)
    while admission.decide(route, room, 0.0) is None:
        pass
    admission.read(room - 8 * MB, 0, 0.4)
    assert admission.decide(route, room, 0.8) is Reason.COLD_START
    assert admission.decide(route, room, 0.9) is None


def test_a_class_whose_need_is_seen_is_not_new_any_more_once_as_many_were_answered() -> None:
    admission, route = Admission(FLOOR), Route()
    room = 10 * (12 << 20)
    admission.read(room, 0, 0.0)
    while admission.decide(route, room, 0.0) is None:
        pass
    admission.read(room - 10 * MB, 0, 0.1)
    for _ in range(10):
        admission.answers(route)
    assert all(admission.decide(route, 1 << 40, 0.2) is None for _ in range(1000))


def test_a_class_with_unseen_memory_begins_anew_after_idling() -> None:
    route = known(8.0 * MB)
    admission = Admission(0)
    room = 10 * (12 << 20)
    started = 0
    while admission.decide(route, 1000 * room if started else room, 0.0) is None:
        started += 1
    assert started == 10
    for _ in range(10):
        admission.answers(route)
    assert admission.decide(route, 1000 * room, 0.1) is None


# --- simulations ---


def array(_: random.Random) -> tuple[str, list[Step]]:
    return "work", [("wait", 0.1), ("grab", 8 * MB), ("wait", 0.2)]


def at_once(_: random.Random) -> tuple[str, list[Step]]:
    return "work", [("grab", 8 * MB), ("wait", 0.2)]


def grow(_: random.Random) -> tuple[str, list[Step]]:
    return "work", [("grab", 0.4 * MB), ("wait", 0.02)] * 20


def child(_: random.Random) -> tuple[str, list[Step]]:
    return "work", [("wait", 0.02), ("grab", 16 * MB), ("wait", 0.5)]


def array_and_pings(rng: random.Random) -> tuple[str, list[Step]]:
    return ("ping", []) if rng.random() < 0.8 else array(rng)


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize(
    ("job", "rate", "fit"),
    [(array, 250, 25), (at_once, 250, 25), (grow, 250, 25), (child, 50, 12)],
)
def test_nothing_is_killed_and_most_of_what_fits_is_served(job: Job, rate: float, fit: int, seed: int) -> None:
    service, best = Service(lowest=LOWEST), Service(paced=False, limit=fit)
    service.run(job, poisson(rate, 20, seed), seed)
    best.run(job, poisson(rate, 20, seed), seed)
    assert service.kills == best.kills == 0
    assert service.rate(service.good, 0, 20) >= 0.6 * best.rate(best.good, 0, 20)


def test_the_same_load_unpaced_is_killed() -> None:
    service = Service(paced=False)
    service.run(array, poisson(250, 20, seed=1))
    assert service.kills > 3


@pytest.mark.parametrize("seed", range(1, 6))
def test_pings_pass_while_others_wait_for_unseen_memory(seed: int) -> None:
    service = Service(lowest=LOWEST)
    service.run(array_and_pings, poisson(1000, 10, seed), seed)
    assert service.kills == 0
    assert service.rate(service.shed, 1, 10, "ping") < 0.2 * service.rate(service.good, 1, 10, "ping")
    assert service.rate(service.good, 1, 10, "work") > 40


@pytest.mark.parametrize("seed", range(1, 6))
def test_waves_of_load_that_takes_memory_unseen_are_survived_one_and_all(seed: int) -> None:
    service = Service(lowest=LOWEST)
    for wave in range(3):
        service.run(array, poisson(250, 15 * wave + 5, seed + wave, since=15 * wave))
    assert service.kills == 0
    assert service.rate(service.good, 31, 35) > 40
