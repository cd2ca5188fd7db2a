"""The pace on a virtual clock: load as in the arena, with a guard that refuses what does not fit.

Figures are compared with the same requests let in unpaced, never with the time that anything takes.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from known import in_flight, known
from simulated import FLOOR, LOWEST, MB, Job, Service, Step, poisson

from resource_monitor.admission import GAIN, Admission, Learned, Priority, Reason, Route


def race(_: random.Random) -> tuple[str, list[Step]]:
    return "work", [("wait", 0.3), ("take", 8 * MB), ("wait", 0.2)]


def burst(_: random.Random) -> tuple[str, list[Step]]:
    return "work", [("take", 8 * MB), ("wait", 0.2)]


def grow(_: random.Random) -> tuple[str, list[Step]]:
    return "work", [("take", 0.4 * MB), ("wait", 0.02)] * 20


def objects(_: random.Random) -> tuple[str, list[Step]]:
    return "work", [("work", 0.002), ("take", 2 * MB)] * 2 + [("wait", 0.2)]


def mixed(rng: random.Random) -> tuple[str, list[Step]]:
    return "work", [("wait", 0.1), ("take", min(64, 2 * rng.paretovariate(1.3)) * MB), ("wait", 0.2)]


def pingmix(rng: random.Random) -> tuple[str, list[Step]]:
    if rng.random() < 0.8:
        return "ping", []
    return "job", [("wait", 0.1), ("take", 32 * MB), ("wait", 0.5)]


def served(
    job: Job, *, paced: bool, rate: float = 300, seed: int = 1, lowest: float = FLOOR, workers: int = 1
) -> Service:
    service = Service(paced, lowest=lowest, workers=workers)
    service.run(job, poisson(rate, 20, seed), seed)
    return service


# --- the arena's load, with floors as the gate sets them ---


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("job", "rate", "name", "share"),
    [
        (burst, 300, "work", 0.95),
        (race, 300, "work", 1.05),
        (grow, 300, "work", 1.2),
        (objects, 300, "work", 0.95),
        (mixed, 300, "work", 1.05),
        (pingmix, 200, "job", 0.85),
        (pingmix, 200, "ping", 0.95),
    ],
)
def test_as_much_is_served_as_by_the_guard_alone_and_little_of_it_lost(
    job: Job, rate: float, name: str, share: float, seed: int
) -> None:
    paced = served(job, paced=True, rate=rate, seed=seed, lowest=LOWEST)
    alone = served(job, paced=False, rate=rate, seed=seed)
    assert paced.rate(paced.good, 10, 20, name) > share * alone.rate(alone.good, 10, 20, name)
    assert paced.share_lost(10, 20, name) <= 0.15


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("job", [race, grow, mixed])
def test_what_takes_its_memory_late_loses_far_less_than_with_the_guard_alone(job: Job, seed: int) -> None:
    paced = served(job, paced=True, seed=seed, lowest=LOWEST)
    alone = served(job, paced=False, seed=seed)
    assert paced.share_lost(10, 20) < 0.5 * alone.share_lost(10, 20)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_workers_on_one_memory_find_a_pace_each(seed: int) -> None:
    paced = served(race, paced=True, seed=seed, lowest=LOWEST, workers=4)
    alone = served(race, paced=False, seed=seed, workers=4)
    assert paced.rate(paced.good, 10, 20) > 1.05 * alone.rate(alone.good, 10, 20)
    assert paced.share_lost(10, 20) <= 0.15
    assert [process.routes["work"].unseen for process in paced.processes] == [0, 0, 0, 0]


def in_waves(job: Job, *, paced: bool, seed: int) -> Iterator[tuple[float, float]]:
    """Good results a second and the share lost, of four times 5 s at three times what fits after 10 s of nothing."""
    service = Service(paced, lowest=LOWEST)
    for begin in range(10, 70, 15):
        service.run(job, poisson(300, begin + 5, 10 * seed + begin, since=begin), seed)
        yield service.rate(service.good, begin, begin + 5), service.share_lost(begin, begin + 5)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_load_that_comes_in_waves_is_served_as_well_and_little_of_it_lost(seed: int) -> None:
    paced, alone = list(in_waves(race, paced=True, seed=seed)), list(in_waves(race, paced=False, seed=seed))
    assert paced[0][1] < 0.6 * alone[0][1]
    for (good, lost), (good_alone, _) in zip(paced[1:], alone[1:], strict=True):
        assert good > good_alone
        assert lost <= 0.15


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_lagging_loop_bounds_how_long_answers_take(seed: int) -> None:
    """Work that needs the core for longer than it is there: what is let in at all is answered in good time."""

    def in_flight_at_most(paced: bool) -> int:
        service = Service(paced, lowest=LOWEST)
        most = 0

        def job(_: random.Random) -> tuple[str, list[Step]]:
            nonlocal most
            most = max(most, service.processes[0].admission.in_flight)
            return "work", [("work", 0.005), ("take", 0.2 * MB), ("wait", 0.05)]

        service.run(job, poisson(300, 20, seed), seed)
        assert service.rate(service.good, 5, 20) > 180
        return most

    assert in_flight_at_most(paced=True) < 0.25 * in_flight_at_most(paced=False)


# --- the pace, with one floor for all ---


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("job", "share"), [(race, 1.05), (grow, 1.2), (mixed, 0.95)])
def test_the_guard_alone_does_less_or_loses_far_more(job: Job, share: float, seed: int) -> None:
    paced, unpaced = served(job, paced=True, seed=seed), served(job, paced=False, seed=seed)
    assert paced.rate(paced.good, 10, 20) > share * unpaced.rate(unpaced.good, 10, 20)
    good, lost = paced.rate(paced.good, 10, 20), paced.rate(paced.lost, 10, 20)
    assert lost / (good + lost) < 0.15
    assert lost < 0.5 * unpaced.rate(unpaced.lost, 10, 20)


@pytest.mark.parametrize("job", [race, grow, mixed])
def test_the_pace_is_found_within_seconds(job: Job) -> None:
    service = served(job, paced=True)
    assert service.rate(service.good, 2, 10) > 0.8 * service.rate(service.good, 10, 20)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("job", [race, grow, burst])
def test_what_the_first_requests_held_says_how_many_may_start(job: Job, seed: int) -> None:
    service = served(job, paced=True, seed=seed, lowest=LOWEST)
    assert service.rate(service.good, 1, 2) > 0.92 * service.rate(service.good, 10, 20)


def first_round(
    hold: Callable[[int], int],
    *,
    others: int = 0,
    elsewhere: int = 0,
    count: int = 8,
    rounds: int = 1,
    lost: int = 0,
    tenth: float = 0.1,
    took: float | None = None,
    learned: Learned | None = None,
) -> tuple[Admission, Route]:
    """Requests that take five tenths of a second, of all that is left 240 MB without what they ``hold`` by then."""
    admission, route = Admission(40 * MB), Route(learned)
    now = 100.0
    for _ in range(2):
        admission.read(240 * MB, 0, now, others=others, elsewhere=elsewhere)
    for _ in range(rounds):
        for _ in range(count + lost):
            assert admission.decide(route, 240 * MB, now) is None
        for part in range(1, 6):
            left = 240 * MB - hold(part)
            admission.read(left, 240 * MB - left, now + part * tenth, others=others, elsewhere=elsewhere)
        now += 5 * tenth
        for number in range(count + lost):
            admission.ends(route, now, lost=number < lost, took=5 * tenth if took is None else took)
    return admission, route


def rate_after(hold: Callable[[int], int], **how: Any) -> float | None:
    return first_round(hold, **how)[1].rate


def steadily(size: int) -> Callable[[int], int]:
    """Held like that are ``size`` bytes on average: between two readings what changed is taken to have changed evenly,
    and at the start nothing was held."""
    return lambda _: round(size / 0.9)


def test_as_many_start_as_fit_if_each_holds_what_the_first_held() -> None:
    # 8 of them held 80 MB for half a second: 10 MB × 0.5 s each, of 200 MB
    assert rate_after(steadily(80 * MB)) == pytest.approx(40)
    # none of it in the first two fifths, half of it in the third: 10 MB × 0.25 s
    assert rate_after(lambda tenth: 80 * MB if tenth > 2 else 0) == pytest.approx(80)
    # in steps as they are read: 10 MB × 0.25 s, and not × 0.3 s
    assert rate_after(lambda tenth: tenth * 16 * MB) == pytest.approx(80)


@pytest.mark.parametrize(("in_flight", "more"), [(0, 15), (10, 5), (16, 0)])
def test_a_pace_begins_with_most_of_those_in_flight_that_fit(in_flight: int, more: int) -> None:
    """They wait since before it was known. From there on they come evenly."""
    admission, route = first_round(steadily(69 * MB), count=7)
    for _ in range(in_flight + 1):
        assert admission.decide(route, 240 * MB, 100.5) is None
    assert route.rate is None
    admission.ends(route, 100.5, lost=False, took=0.5)  # the eighth: 20.3 fit
    assert route.rate is not None
    admission.starts(route)  # beside others

    def starts(now: float) -> int:
        asked = iter(lambda: admission.decide(route, 240 * MB, now), Reason.PACE)
        return sum(reason is None for reason in asked)

    assert starts(100.5) == more
    assert starts(100.5 + 3 / route.rate) == 2
    assert starts(110.0) == 2


def test_a_class_whose_requests_take_no_time_by_the_clock_begins_without_a_rate() -> None:
    assert rate_after(steadily(80 * MB), took=0.0) is None


def test_what_other_processes_hold_is_not_put_down_to_a_class() -> None:
    # as many are in flight elsewhere, and this process is one of two
    assert rate_after(steadily(160 * MB), others=1, elsewhere=8) == pytest.approx(20)


def test_classes_that_hold_little_or_of_which_few_fit_begin_without_a_rate() -> None:
    assert rate_after(lambda _: 0) is None
    # the second round begins with what the first held
    assert rate_after(lambda _: round(199 * MB / 0.95), count=4, rounds=2) == pytest.approx(8, rel=0.01)
    assert rate_after(lambda _: round(201 * MB / 0.95), count=4, rounds=2) is None


def paced_by_first(held: int, *, lost: bool) -> list[float]:
    """The rates, at each taking of stock, of a class that begins at 1/s and is held back, while ``held`` bytes are."""
    admission, route = first_round(lambda _: 80 * MB, tenth=8.0)
    route.lost += lost
    rates, now = [], 200.0
    for _ in range(2):
        while admission.decide(route, 240 * MB - held, now) is None:
            admission.read(240 * MB - held, held, now)
        for _ in range(route.in_flight):
            admission.ends(route, now, lost=False, took=0.1)
        now += 5.0
        assert route.rate is not None
        rates.append(route.rate)
    return rates


@pytest.mark.parametrize(
    ("held", "lost", "faster"),
    [
        (100, False, 1.5),  # twice as much fits
        (160, False, 1.25),  # of 200 MB
        (160, True, 1.125),  # half of the way
        (196, False, 1.04),
        (196, True, 200 / 196),
        (205, True, 1.0),
    ],
)
def test_a_pace_that_leaves_memory_unused_grows_as_far_as_there_was_room(held: int, lost: bool, faster: float) -> None:
    before, after = paced_by_first(held * MB, lost=lost)
    assert after / before == pytest.approx(faster, rel=1e-6)


def counted(
    rate: float,
    *,
    left: int,
    seconds: float,
    good: int = 20,
    took: float = 0.1,
    counts: int = 1,
    lost: int = 0,
    calm: int = 0,
    unseen: float = 0.0,
) -> tuple[Admission, Route]:
    """A class at ``rate``/s, of which so many end evenly within ``seconds``, after some more were refused. It ``lost``
    some before, and none for so many counts as it is ``calm``."""
    admission, route = Admission(40 * MB), known(unseen, rate=rate)
    route.lost, route._calm = lost, calm
    admission.read(240 * MB, 0, 0.0)
    for count in range(counts):
        now = count * seconds
        for _ in range(good):
            admission.starts(route)
        admission.read(left, 240 * MB - left, now)
        for _ in range(9):
            admission.decide(route, left, now)
        for number in range(good):
            admission.ends(route, now + seconds * number / (good - 1), lost=False, took=took)
    return admission, route


def test_a_count_lasts_at_least_as_long_as_a_request() -> None:
    """Those that began together end together: 20 in 0.3 s, where each takes a second, are no 67/s."""
    _, route = counted(100.0, left=200 * MB, seconds=0.3, took=0.25)
    assert route._delivered == pytest.approx(20 / 0.3, rel=0.3)
    admission, route = counted(100.0, left=200 * MB, seconds=0.3, took=1.0)
    assert route._delivered is None
    admission.starts(route)
    admission.ends(route, 1.0, lost=False, took=1.0)
    assert route._delivered == pytest.approx(21)


@pytest.mark.parametrize(
    ("calm", "unseen", "faster"),
    [(1, 0.0, 200 / 195), (2, 0.0, 1.04), (2, 0.3 * MB, 200 / 195)],
    ids=["one count", "two", "of memory that is not lost to the guard"],
)
def test_a_pace_that_loses_nothing_for_some_counts_grows_though_memory_is_full(
    calm: int, unseen: float, faster: float
) -> None:
    """An allocator may keep what was held before."""
    _, route = counted(100.0, left=45 * MB, seconds=0.5, good=10, lost=1, calm=calm, unseen=unseen)
    assert route.rate == pytest.approx(100 * faster)
    assert bool(route.unseen) == bool(unseen)


def test_where_memory_refuses_a_pace_comes_down_to_a_little_more_than_what_is_delivered() -> None:
    """By a fifth a count at the most, and not at all where the pace alone refuses."""
    _, route = counted(200.0, left=39 * MB, seconds=0.5, counts=2)
    assert route.rate == pytest.approx(0.8 * 200)
    _, route = counted(65.0, left=39 * MB, seconds=0.5, counts=2)
    assert route._delivered == pytest.approx(40, rel=0.1)
    assert route.rate == pytest.approx(1.4 * 41.8)  # in the second count
    _, route = counted(200.0, left=200 * MB, seconds=0.5, counts=2)
    assert route.rate >= 200


def test_what_is_delivered_at_first_does_not_bring_a_pace_down() -> None:
    """That was let in before there was one: of several processes one may have had most of it."""
    _, route = counted(200.0, left=39 * MB, seconds=0.5)
    assert route.rate == 200


def test_losses_do_not_raise_a_pace() -> None:
    """Not even where more was delivered than it says."""
    admission, route = counted(100.0, left=200 * MB, seconds=0.3)
    before = route.rate
    assert before is not None
    assert route._delivered is not None
    route._delivered = 2 * before
    for _ in range(20):
        admission.starts(route)
    for number in range(20):
        admission.ends(route, 0.3 + number / 50, lost=number % 3 == 0, took=0.1)
    assert route._lost < route.lost  # it was counted
    assert route.rate == before


def test_a_class_speeds_up_as_before_where_others_fill_the_memory() -> None:
    def faster(others: int) -> float:
        admission, route = counted(200.0, left=240 * MB, seconds=0.5)
        route.lost = 1
        for _ in range(2 * 20):
            assert admission.decide(route, 240 * MB, 1.0 + route.in_flight / 100) in (None, Reason.PACE)
        in_flight(admission, known(), others)
        admission.read(41 * MB, 199 * MB, 1.5)
        while admission.decide(route, 41 * MB, 1.5) is None:
            pass
        before = route.rate
        assert before is not None
        for number in range(route.in_flight - 1):
            admission.ends(route, 1.6 + number / 100, lost=False, took=0.1)
        assert route.rate is not None
        return route.rate / before

    assert faster(0) < 1.01
    assert faster(100) == pytest.approx(1.04)


def begun(count: int) -> tuple[Admission, Route]:
    """A new class of which so many requests start where two readings find 240 MB left."""
    admission, route = Admission(40 * MB), Route()
    for _ in range(2):
        admission.read(240 * MB, 0, 100.0)
    for _ in range(count):
        assert admission.decide(route, 240 * MB, 100.0) is None
    return admission, route


def eight_end(admission: Admission, route: Route, now: float = 100.5) -> None:
    for _ in range(8):
        admission.ends(route, now, lost=False, took=0.5)


def test_what_the_first_requests_load_does_not_keep_a_class_from_being_paced_by_them() -> None:
    def rate(unseen: int) -> float | None:
        admission, route = begun(8)
        for part in range(1, 6):
            admission.read(160 * MB, 80 * MB - unseen, 100.0 + part / 10)
        eight_end(admission, route)
        assert route.unseen > 0
        return route.rate

    assert rate(28 * MB) is not None
    assert rate(60 * MB) is None


def test_nor_what_they_took_while_few_were_in_flight() -> None:
    """That is known to be much, for each; of many in flight it is little."""

    def rate(many: int) -> float | None:
        admission, route = begun(2)
        admission.read(200 * MB, 0, 100.0)
        for _ in range(many - 2):
            admission.starts(route)
        admission.read(200 * MB - many * 4 * MB, many * 4 * MB, 100.1)
        eight_end(admission, route)
        assert route.unseen == 10 * MB
        return route.rate

    assert rate(40) is not None
    assert rate(12) is None  # as few as that say nothing


def one_holds_ten(in_flight: int = 1) -> tuple[Admission, Route]:
    """With a class of which a request holds 10 MB beyond the floor of 40 MB, and so many of them in flight."""
    admission, route = first_round(steadily(80 * MB))
    route.rate = None
    for _ in range(in_flight):
        assert admission.decide(route, 200 * MB, 102.0) is None
    return admission, route


def test_who_can_wait_waits_until_what_its_class_holds_fits() -> None:
    admission, route = one_holds_ten()
    assert admission.decide(route, 50 * MB - 1, 103.0, patient=True) is Reason.MEMORY
    assert admission.decide(route, 50 * MB - 1, 103.0) is None
    assert admission.decide(route, 50 * MB, 103.0, patient=True) is None


def test_one_that_is_critical_or_alone_does_not_wait_for_that() -> None:
    admission, route = one_holds_ten()
    assert admission.decide(route, 41 * MB, 103.0, patient=True, priority=Priority.CRITICAL) is None
    admission, route = one_holds_ten(in_flight=0)
    assert admission.decide(route, 41 * MB, 103.0, patient=True) is None


def test_what_those_hold_that_started_a_moment_ago_is_to_fit_too_until_it_can_have_shown() -> None:
    admission, route = one_holds_ten()
    assert admission.decide(route, 60 * MB, 103.0, patient=True) is None
    assert admission.decide(route, 60 * MB - 1, 103.009, patient=True) is Reason.MEMORY
    assert admission.stands(route, 103.009) == pytest.approx(103.01)
    assert admission.decide(route, 60 * MB, 103.009, patient=True) is None  # and so it starts anew
    assert admission.decide(route, 60 * MB, 103.018, patient=True) is Reason.MEMORY
    assert admission.decide(route, 60 * MB, 103.02, patient=True) is None


def test_a_reading_shows_what_started_before_it() -> None:
    admission, route = one_holds_ten()
    assert admission.decide(route, 60 * MB, 103.0, patient=True) is None
    admission.read(59 * MB, 181 * MB, 103.001)
    assert admission.decide(route, 59 * MB, 103.001, patient=True) is None


def test_slow_requests_start_once_a_second_at_the_least() -> None:
    # 10 MB × 40 s each, of 200 MB: one in two seconds
    assert rate_after(lambda _: 80 * MB, tenth=8.0) == 1


def test_what_those_hold_that_are_lost_is_not_asked_for() -> None:
    """They held nothing, and were in flight all the same."""
    assert rate_after(steadily(80 * MB), lost=4) == pytest.approx(40)


def test_what_was_lost_before_a_pace_was_found_does_not_slow_it_down() -> None:
    admission, route = first_round(steadily(80 * MB), lost=8)
    assert admission.decide(route, 240 * MB, 101.0) is None
    admission.ends(route, 101.0, lost=False, took=0.5)
    assert route._delivered is not None  # that was counted
    assert route.rate == pytest.approx(40)
    assert route.lost == 8


def test_of_several_processes_each_needs_fewer_results() -> None:
    """What is held is seen of all of them."""
    # 2 of 8 hold a fourth of 20 MB for half a second: 2.5 MB × 0.5 s each, of a fourth of 200 MB
    assert rate_after(steadily(20 * MB), others=3, elsewhere=6, count=2) == pytest.approx(40)
    assert rate_after(steadily(20 * MB), others=1, elsewhere=6, count=2) is None


def test_a_class_that_was_measured_is_new_no_longer() -> None:
    admission, route = first_round(lambda _: 8 * MB)  # 1 MB × 0.5 s each, so that 400 a second fit
    # none of these is answered
    assert {admission.decide(route, 240 * MB, 101 + tick / 390) for tick in range(150)} == {None}


def test_among_others_nothing_is_measured() -> None:
    admission, light, heavy = Admission(40 * MB), Route(), Route()
    admission.read(240 * MB, 0, 99.9)
    for route, count in ((heavy, 8), (light, 8)):
        for _ in range(count):
            assert admission.decide(route, 240 * MB, 100.0) is None
    admission.read(160 * MB, 80 * MB, 100.5)
    eight_end(admission, light)
    assert light.rate is None


def test_among_many_classes_none_is_measured() -> None:
    admission, heavy = Admission(40 * MB), Route()
    admission.read(240 * MB, 0, 100.0)
    for route, count in ((heavy, 16), *((Route(), 1) for _ in range(4))):
        for _ in range(count):
            assert admission.decide(route, 240 * MB, 100.0) is None
    admission.read(160 * MB, 80 * MB, 100.5)
    eight_end(admission, heavy)
    assert heavy.rate is None


def test_what_is_taken_unseen_begins_without_a_rate() -> None:
    admission, route = Admission(40 * MB), Route()
    admission.read(240 * MB, 0, 100.0)
    for _ in range(8):
        assert admission.decide(route, 240 * MB, 100.0) is None
    admission.read(160 * MB, 0, 100.5)  # nothing of it passed the guard
    eight_end(admission, route, 100.6)
    assert route.unseen
    assert route.rate is None


def test_a_class_that_others_know_is_not_measured_again() -> None:
    assert rate_after(lambda _: 80 * MB, learned=Learned(None, 0.0, None, None)) is None


def started_at_once(reads: list[float]) -> int:
    """How many requests of a new class may be unanswered when memory was seen to grow at each of these seconds."""
    admission, route = Admission(40 * MB), Route()
    admission.read(240 * MB, 0, 100.0)
    count = 0
    while admission.decide(route, 240 * MB, 100.0) is None:
        count += 1
    for number, second in enumerate(reads, 1):
        admission.read((240 - 10 * number) * MB, 15 * number * MB, 100 + second)  # a part shows later
    while admission.decide(route, 240 * MB, 100 + reads[-1]) is None:
        count += 1
    return count


def test_a_new_class_doubles_once_in_a_quarter_of_a_second_however_often_memory_is_read() -> None:
    at_first = 240 * MB // (12 << 20)
    assert started_at_once([0.1]) == at_first
    assert started_at_once([0.26]) == 2 * at_first
    assert started_at_once([0.26, 0.28, 0.3, 0.32]) == 2 * at_first
    assert started_at_once([0.26, 0.52]) == 4 * at_first


def test_what_loses_nothing_is_not_paced() -> None:
    paced, unpaced = served(burst, paced=True), served(burst, paced=False)
    assert paced.routes["work"].rate is paced.routes["work"].window is None
    assert len(paced.good) > 0.97 * len(unpaced.good)


def test_big_jobs_are_not_starved_and_others_not_held_back_for_them() -> None:
    paced, unpaced = served(pingmix, paced=True, rate=200), served(pingmix, paced=False, rate=200)
    assert paced.rate(paced.good, 0, 20, "job") > 0.85 * unpaced.rate(unpaced.good, 0, 20, "job")
    assert paced.routes["ping"].rate is paced.routes["ping"].window is None


def test_the_pace_is_let_go_when_it_binds_no_longer() -> None:
    service = Service()
    service.run(race, poisson(300, 8, seed=1))
    route = service.routes["work"]
    assert route.rate is not None
    service.run(race, poisson(20, 30, seed=2, since=10))
    assert route.rate is route.window is None
    assert route.in_flight == 0


def test_after_idling_the_pace_is_about_what_it_was() -> None:
    service = Service()
    for wave in range(4):
        service.run(race, poisson(300, 15 * wave + 5, seed=wave, since=15 * wave))
    last, first = service.rate(service.good, 47.5, 50), service.rate(service.good, 2.5, 5)
    assert last > 0.9 * first


# --- the rules one by one ---


def paced_route(admission: Admission, *, now: float) -> Route:
    """A class that was just found to lose half of what it starts, 40 of 80 in a second."""
    route = Route()
    for _ in range(80):
        admission.starts(route)
    for i in range(80):
        admission.ends(route, now + i / 79, lost=i % 2 == 1, took=0.1)
    return route


def test_a_paced_class_starts_a_little_more_than_it_completes_evenly_spread() -> None:
    admission = Admission(0)
    route = paced_route(admission, now=100.0)
    assert route.rate is not None
    admission.decide(route, 0, 101.0)  # one in flight: the first is let in whatever the pace
    started = sum(admission.decide(route, 0, 101 + i / 1000) is None for i in range(1000))
    assert started == pytest.approx(route.rate, abs=2)
    assert sum(admission.decide(route, 0, 110.0) is None for _ in range(100)) == 2


def test_one_request_may_always_start() -> None:
    admission = Admission(0)
    route = paced_route(admission, now=100.0)
    started = sum(admission.decide(route, 0, 101.0) is None for _ in range(10))
    assert 0 < started < 10
    for _ in range(started):
        admission.ends(route, 101.0, lost=True, took=0.1)
    assert admission.decide(route, 0, 101.0) is None
    assert admission.decide(route, 0, 101.0) is Reason.PACE


def test_critical_requests_are_not_paced() -> None:
    admission = Admission(0)
    route = paced_route(admission, now=100.0)
    while admission.decide(route, 0, 101.0) is None:
        pass
    assert admission.decide(route, 0, 101.0, priority=Priority.SHEDDABLE) is Reason.PACE
    assert admission.decide(route, 0, 101.0, priority=Priority.CRITICAL) is None


def test_a_class_that_completes_nothing_is_not_paced_to_a_standstill() -> None:
    admission = Admission(0)
    route = Route()
    for second in range(60):
        for _ in range(20):
            if admission.decide(route, 0, float(second)) is None:
                admission.answers(route)
                admission.ends(route, second + 0.5, lost=True, took=0.1)
    assert admission.decide(route, 0, 61.0) is None
    admission.ends(route, 61.5, lost=False, took=0.1)
    assert admission.decide(route, 0, 62.0) is None


# --- few in flight ---


def windowed_route(admission: Admission, *, now: float) -> Route:
    """A class of which four were in flight and two of them lost."""
    route = Route()
    assert all(admission.decide(route, 0, now) is None for _ in range(4))
    for at, lost in ((now, True), (now, True), (now, False), (now + 1.1, False)):
        admission.ends(route, at, lost=lost, took=0.1)
    assert route.window is not None
    return route


def start_all(admission: Admission, route: Route, now: float) -> int:
    """How many start until the class is held back."""
    number = 0
    while (reason := admission.decide(route, 0, now)) is None:
        number += 1
    assert reason is Reason.PACE
    return number


def test_a_class_with_few_in_flight_may_have_as_many_as_were_not_lost() -> None:
    admission = Admission(0)
    route = windowed_route(admission, now=100.0)
    assert route.rate is None
    assert start_all(admission, route, 102.0) == route.window == 2
    admission.ends(route, 103.0, lost=False, took=0.1)
    assert admission.decide(route, 0, 103.0) is None


def test_a_window_grows_with_what_is_done_while_it_binds() -> None:
    admission = Admission(0)
    route = windowed_route(admission, now=100.0)
    before = route.window
    admission.decide(route, 0, 102.0)
    admission.ends(route, 102.1, lost=False, took=0.1)
    assert route.window == before
    start_all(admission, route, 102.2)
    admission.ends(route, 102.3, lost=False, took=0.1)
    assert before is not None
    assert route.window is not None
    assert route.window > before


def test_a_loss_costs_a_window_more_than_a_good_result_brings_but_one_may_always_start() -> None:
    admission = Admission(0)
    route = windowed_route(admission, now=100.0)
    start_all(admission, route, 102.0)
    assert route.window is not None
    at_first = route.window
    admission.ends(route, 102.1, lost=False, took=0.1)
    grown = route.window
    admission.ends(route, 102.2, lost=True, took=0.1)
    assert route.window < at_first < grown
    for _ in range(20):
        admission.starts(route)
        admission.ends(route, 102.3, lost=True, took=0.1)
    assert route.window == 1
    assert start_all(admission, route, 102.4) == 1


def test_a_window_that_has_become_large_is_a_pace_from_then_on() -> None:
    admission = Admission(0)
    route = windowed_route(admission, now=100.0)
    now = 102.0
    while route.window is not None:
        for _ in range(start_all(admission, route, now)):
            now += 0.1
            admission.ends(route, now, lost=False, took=0.1)
        assert now < 200
    assert route.rate is not None
    assert 5 < route.rate < 20


def test_a_window_that_does_not_bind_is_let_go() -> None:
    admission = Admission(0)
    route = windowed_route(admission, now=100.0)
    now = 102.0
    while route.window is not None:
        assert admission.decide(route, 0, now) is None
        now += 0.5
        admission.ends(route, now, lost=False, took=0.1)
        assert now < 200
    assert route.rate is None


def test_the_gain_is_what_probing_may_cost() -> None:
    assert 1 - 1 / GAIN < 0.15
