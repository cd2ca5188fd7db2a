import asyncio
import os
import signal
import threading

import pytest
from machine import MIB, Clock, Machine, Service

from resource_monitor import reserve
from resource_monitor.errors import ConfigurationError, MemoryPressure
from resource_monitor.monitor import MemoryMonitor
from resource_monitor.reservation import Ledger, ledger_of

# of a container with 256 MiB 32 are used and 8 are the guard's floor
ROOM = 216


def fits(service: Service, mib: int) -> bool:
    try:
        with reserve(mib * MIB, monitor=service.monitor):
            return True
    except MemoryPressure:
        return False


def test_there_is_room_down_to_the_floor(service: Service) -> None:
    assert fits(service, ROOM)
    assert not fits(service, ROOM + 1)


def test_what_does_not_fit_is_a_memory_error_that_says_why(service: Service) -> None:
    with pytest.raises(
        MemoryError,
        match=r"^300\.0 MiB cannot be reserved: 224\.0 MiB of memory are left and not promised, of which 8\.0 MiB are "
        r"kept free; try again later or reserve less\.$",
    ):
        reserve("300MiB", monitor=service.monitor).__enter__()


class Others:
    """They promised ``bytes``, and were told so often what is promised here."""

    def __init__(self, bytes: int) -> None:
        self.bytes = bytes
        self.told: list[int] = []
        self.ledger: Ledger | None = None

    def promised(self) -> int:
        return self.bytes

    def tell(self) -> None:
        assert self.ledger is not None
        self.told.append(self.ledger.unshown)


def test_what_other_processes_promised_is_not_left_and_they_are_told(service: Service) -> None:
    others = Others(50 * MIB)
    others.ledger = ledger_of(service.monitor)
    others.ledger.neighbours = others
    with reserve((ROOM - 50) * MIB, monitor=service.monitor):
        assert others.told == [(ROOM - 50) * MIB]
    assert others.told[1:] == [0]
    assert not fits(service, ROOM - 49)
    others.bytes = 0
    assert fits(service, ROOM)


class AtOnce(Others):
    """They promise so much more each time they are told of something, as those do who did not know of it."""

    def __init__(self, *more: int) -> None:
        super().__init__(0)
        self.more = list(more)

    def tell(self) -> None:
        super().tell()
        if self.more:
            self.bytes += self.more.pop(0)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([116], [100, 0]),  # both fit
        ([117, -117], [100, 0, 100, 0]),  # they gave way too
    ],
)
def test_of_what_was_promised_here_and_elsewhere_at_once_only_what_fits_stays(
    service: Service, more: list[int], told: list[int]
) -> None:
    others = AtOnce(*(number * MIB for number in more))
    others.ledger = ledger_of(service.monitor)
    others.ledger.neighbours = others
    assert fits(service, 100)
    assert others.told == [number * MIB for number in told]
    assert others.ledger.promised == 0


def test_who_meets_others_twice_gives_way(service: Service) -> None:
    others = AtOnce(117 * MIB, -10 * MIB, 10 * MIB)
    others.ledger = ledger_of(service.monitor)
    others.ledger.neighbours = others
    with pytest.raises(MemoryPressure, match=r"^100\.0 MiB cannot be reserved: 107\.0 MiB of memory are left"):
        reserve(100 * MIB, monitor=service.monitor).__enter__()
    assert others.told == [100 * MIB, 0, 100 * MIB, 0]


def test_nothing_stays_promised_where_it_cannot_be_seen_what_others_promised(service: Service) -> None:
    class Unseen(Others):
        def promised(self) -> int:
            if self.told:
                raise MemoryError
            return 0

    others = Unseen(0)
    others.ledger = ledger_of(service.monitor)
    others.ledger.neighbours = others
    with pytest.raises(MemoryError):
        reserve(100 * MIB, monitor=service.monitor).__enter__()
    assert others.told == [100 * MIB, 0]


def test_promises_add_up_and_end_with_their_block(service: Service) -> None:
    with reserve(100 * MIB, monitor=service.monitor):
        assert fits(service, ROOM - 100)
        assert not fits(service, ROOM - 99)
        with reserve("100MiB", monitor=service.monitor):
            assert fits(service, ROOM - 200)
            assert not fits(service, ROOM - 199)
        assert fits(service, ROOM - 100)
    assert fits(service, ROOM)


def test_a_promise_ends_with_an_exception(service: Service) -> None:
    with pytest.raises(KeyError), reserve(200 * MIB, monitor=service.monitor):
        raise KeyError
    assert fits(service, ROOM)


def test_a_refusal_promises_nothing(service: Service) -> None:
    for _ in range(3):
        assert not fits(service, ROOM + 1)
    assert fits(service, ROOM)


def test_one_reservation_may_be_entered_again_while_it_is_held(service: Service) -> None:
    reservation = reserve(100 * MIB, monitor=service.monitor)
    with reservation:
        with reservation:
            assert not fits(service, ROOM - 199)
        assert not fits(service, ROOM - 99)
        assert fits(service, ROOM - 100)
    assert fits(service, ROOM)


def test_memory_that_shows_in_the_reading_is_not_counted_twice(service: Service) -> None:
    with reserve(100 * MIB, monitor=service.monitor):
        service.use((32 + 100) * MIB)
        assert fits(service, ROOM - 100)
        assert not fits(service, ROOM - 99)
    assert not fits(service, ROOM - 99)
    service.empty()
    assert fits(service, ROOM)


def test_memory_beyond_the_promise_counts_too(service: Service) -> None:
    with reserve(50 * MIB, monitor=service.monitor):
        service.use((32 + 100) * MIB)
        assert fits(service, ROOM - 100)
        assert not fits(service, ROOM - 99)


def test_relief_is_sought_before_anyone_is_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def relieve() -> int:
        service.empty()
        return service.monitor.headroom()

    monkeypatch.setattr(service.monitor, "relieve", relieve)
    service.fill()
    assert fits(service, ROOM)


def test_without_any_limit_everything_fits(machine: Machine, clock: Clock) -> None:
    machine.path("/proc/meminfo").unlink()
    machine.process("", "")
    with reserve("1TiB", monitor=MemoryMonitor(root=str(machine), clock=clock)):
        pass


def test_without_a_reading_nothing_is_refused(service: Service) -> None:
    service.break_probe()
    with reserve("1TiB", monitor=service.monitor):
        pass
    service.mend_probe()
    assert fits(service, ROOM)
    assert not fits(service, ROOM + 1)


@pytest.mark.parametrize("size", ["x", "", -1, "-1MiB", "10%", 1.5, None, True])
def test_what_is_no_size_is_refused_before_it_is_promised(size: object) -> None:
    with pytest.raises(ConfigurationError):
        reserve(size)  # type: ignore[arg-type]


def test_promises_of_many_threads_never_exceed_what_is_left(service: Service) -> None:
    start, end = threading.Barrier(20), threading.Barrier(20)
    outcomes: list[bool] = []

    def hold() -> None:
        start.wait()
        try:
            with reserve(50 * MIB, monitor=service.monitor):
                outcomes.append(True)
                end.wait()
        except MemoryPressure:
            outcomes.append(False)
            end.wait()

    threads = [threading.Thread(target=hold) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(True) == ROOM // 50
    assert fits(service, ROOM)


def test_async_blocks_hold_a_promise_until_they_end_fail_or_are_cancelled(service: Service) -> None:
    async def hold(until: "asyncio.Future[None]") -> None:
        async with reserve(60 * MIB, monitor=service.monitor):
            await until

    async def main() -> None:
        ends = [asyncio.get_running_loop().create_future() for _ in range(4)]
        tasks = [asyncio.ensure_future(hold(end)) for end in ends]
        await asyncio.sleep(0)
        with pytest.raises(MemoryPressure):
            await tasks[3]
        assert not fits(service, ROOM - 179)
        ends[0].set_result(None)
        ends[1].set_exception(KeyError())
        tasks[2].cancel()
        results = await asyncio.gather(*tasks[:3], return_exceptions=True)
        assert [type(result) for result in results] == [type(None), KeyError, asyncio.CancelledError]
        assert fits(service, ROOM)

    asyncio.run(main())


def test_monitors_have_promises_of_their_own(service: Service) -> None:
    other = MemoryMonitor(root=str(service.machine))
    with reserve(ROOM * MIB, monitor=service.monitor), reserve(ROOM * MIB, monitor=other):
        assert not fits(service, 1)


# --- promises of requests, which the middlewares make ---


def test_a_promise_may_grow_and_shrink_and_ends_once(service: Service) -> None:
    ledger = ledger_of(service.monitor)
    ledger.left(service.monitor.headroom())
    promise = ledger.make(100 * MIB)
    promise.resize(150 * MIB)
    assert ledger.promised == promise.size == 150 * MIB
    assert fits(service, ROOM - 150)
    assert not fits(service, ROOM - 149)
    promise.resize(50 * MIB)
    assert fits(service, ROOM - 50)
    assert not fits(service, ROOM - 49)
    promise.end()
    promise.end()
    assert ledger.promised == 0
    assert fits(service, ROOM)


def test_what_was_taken_of_a_promise_shows_and_says_nothing_of_the_rest(service: Service) -> None:
    ledger = ledger_of(service.monitor)
    ledger.left(service.monitor.headroom())
    promise = ledger.make(100 * MIB)
    service.use((32 + 40) * MIB)
    promise.take(40 * MIB)
    assert (promise.size, ledger.promised) == (60 * MIB, 60 * MIB)
    assert fits(service, ROOM - 100)
    assert not fits(service, ROOM - 99)
    promise.end()
    service.empty()
    assert fits(service, ROOM)
    assert not fits(service, ROOM + 1)


def test_no_more_is_taken_of_a_promise_than_it_holds(service: Service) -> None:
    promise = ledger_of(service.monitor).make(10 * MIB)
    promise.take(50 * MIB)
    assert promise.size == ledger_of(service.monitor).promised == 0
    promise.end()
    assert fits(service, ROOM)


def test_all_who_ask_one_monitor_share_a_ledger(service: Service) -> None:
    assert ledger_of(service.monitor) is ledger_of(service.monitor)
    assert ledger_of(service.monitor) is not ledger_of(MemoryMonitor(root=str(service.machine)))


# --- fork ---


def test_what_was_promised_before_a_fork_is_nothing_in_the_child(service: Service) -> None:
    ledger = ledger_of(service.monitor)
    promise = ledger.make(10 * MIB)
    reservation = reserve(100 * MIB, monitor=service.monitor)
    with reservation:
        with ledger._lock:  # held by another thread at the moment of the fork
            child = os.fork()
            if child == 0:
                signal.alarm(60)  # ends what hangs
                code = 1
                try:
                    assert ledger.promised == 0
                    assert fits(service, ROOM)
                    with reserve(20 * MIB, monitor=service.monitor):
                        promise.take(5 * MIB)
                        promise.resize(50 * MIB)
                        promise.end()
                        reservation.__exit__(None, None, None)
                        assert ledger.promised == 20 * MIB
                    code = 0
                finally:
                    os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert ledger.promised == 110 * MIB
    promise.end()
    assert fits(service, ROOM)
