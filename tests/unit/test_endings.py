"""The garbage collector ends what nobody refers to any more in the middle of anything, also of what a lock protects."""

import gc
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import coroutine
from typing import Any

import pytest
from machine import MIB, Service

from resource_monitor import reserve
from resource_monitor._native._turn import DeferringLock
from resource_monitor.admission import Admission
from resource_monitor.middleware import MemoryBackpressureMiddleware, sharing
from resource_monitor.middleware.gate import Gate
from resource_monitor.monitor import MemoryMonitor, default_monitor
from resource_monitor.promises import Promises
from resource_monitor.reservation import Ledger, ledger_of


@pytest.fixture(autouse=True)
def collected_only_when_asked() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def returns(act: Callable[[], object]) -> bool:
    """Whether ``act`` does, and not wait for ever."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(30)
    return not thread.is_alive()


@coroutine
def for_ever() -> Any:
    yield


def left_to_the_collector(waiting: Coroutine[Any, Any, object]) -> None:
    """It waits, and nobody but itself refers to it."""
    waiting.send(None)
    holder: list[Any] = [waiting]
    holder.append(holder)


def collecting(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """The next call of a method collects before it does anything else."""
    method = getattr(owner, name)

    def collects(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(owner, name, method)
        gc.collect()
        return method(*arguments, **named)

    monkeypatch.setattr(owner, name, collects)


def test_a_request_whose_end_comes_while_another_one_is_decided(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await for_ever()

    async def unused(*message: Any) -> Any:
        raise AssertionError

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    middleware = MemoryBackpressureMiddleware(app, monitor=service.monitor, request_cost="1MiB")
    gate = middleware._gate
    left_to_the_collector(middleware(scope, unused, unused))
    assert (middleware.statistics().in_flight, middleware.statistics().promised) == (1, MIB)
    collecting(monkeypatch, Admission, "decide")
    assert returns(lambda: gate.enter("GET", "/other"))
    statistics = middleware.statistics()
    assert (statistics.in_flight, statistics.promised, statistics.wasted) == (1, 0, 0)
    assert {name for name, route in statistics.routes.items() if route.in_flight} == {"GET /other"}


def test_one_that_waits_for_room(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait() -> None:
        gate.waits(1)
        try:
            await for_ever()
        finally:
            gate.waits(-1)

    gate = Gate(monitor=service.monitor)
    left_to_the_collector(wait())
    assert gate.waiting == 1
    collecting(monkeypatch, Admission, "decide")
    assert returns(lambda: gate.enter("GET", "/"))
    assert gate.waiting == 0


async def holding(service: Service) -> None:
    async with reserve(100 * MIB, monitor=service.monitor):
        await for_ever()


def test_a_reservation_while_another_one_is_made(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = ledger_of(service.monitor)
    left_to_the_collector(holding(service))
    assert ledger.promised == 100 * MIB
    collecting(monkeypatch, Promises, "left")
    assert returns(lambda: ledger.left(200 * MIB))
    assert ledger.promised == 0


class Table:
    """The workers', with nobody else in it."""

    def __init__(self) -> None:
        self.published: list[tuple[int, int]] = []
        self.taught = 0

    def publish(self, promised: int, in_flight: int, passed: int = 0) -> None:
        self.published.append((promised, in_flight))

    def publish_routes(self, records: Any, now: float) -> None:
        self.taught += 1

    def learned(self, name: str, now: float) -> None:
        """Of no class is anything known."""

    def others(self, now: float, *, at_once: bool = False) -> Any:
        return sharing.Others(promised=0, in_flight=0, workers=0)


def beside_others(service: Service, monkeypatch: pytest.MonkeyPatch) -> tuple[Table, Ledger, sharing.Sharing]:
    table, ledger = Table(), ledger_of(service.monitor)
    monkeypatch.setattr(sharing, "_table", table)
    monkeypatch.setattr(sharing, "_parts", [])
    part = sharing.Sharing(table, ledger)  # type: ignore[arg-type]
    monkeypatch.setattr(ledger, "neighbours", sharing.OtherWorkers())
    return table, ledger, part


async def staying(gate: Gate) -> None:
    admitted = gate.enter("GET", "/")
    assert admitted is not None
    try:
        await for_ever()
    finally:
        admitted.leave()


def test_a_reservation_while_workers_look_at_each_other(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    table, _, part = beside_others(service, monkeypatch)
    left_to_the_collector(holding(service))
    assert table.published[-1] == (100 * MIB, 0)
    collecting(monkeypatch, Table, "others")
    assert returns(lambda: part.others(1.0))
    assert table.published[-1] == (0, 0)


def test_a_reservation_while_another_one_is_made_which_the_other_workers_know_of(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, ledger, _ = beside_others(service, monkeypatch)
    left_to_the_collector(holding(service))
    assert table.published[-1] == (100 * MIB, 0)
    collecting(monkeypatch, Promises, "left")
    assert returns(lambda: ledger.left(200 * MIB))
    assert ledger.promised == 0
    assert table.published[-1] == (0, 0)


def test_a_request_while_workers_look_at_each_other(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", lambda report: reported.append(report.exc_value))
    table, _, part = beside_others(service, monkeypatch)
    gate = Gate(monitor=service.monitor)
    gate._sharing = part
    left_to_the_collector(staying(gate))
    assert (table.published[-1], table.taught) == ((0, 1), 1)
    part._learned_due = 0.0
    collecting(monkeypatch, Table, "others")
    assert returns(lambda: part.others(1.0))
    assert gate.in_flight == 0
    assert (table.published[-1], table.taught) == ((0, 0), 2)
    assert reported == []


def test_a_request_while_whoever_decides_waits_for_what_this_thread_is_at(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, ledger = Gate(monitor=service.monitor), ledger_of(service.monitor)
    left_to_the_collector(staying(gate))
    decides, promises = threading.Event(), threading.Event()

    def decide() -> None:
        with gate._lock:
            decides.set()
            promises.wait(30)
            ledger.left(200 * MIB)

    def left(*_: Any) -> int:
        monkeypatch.undo()
        promises.set()
        decides.wait(30)
        gc.collect()
        return 0

    monkeypatch.setattr(Promises, "left", left)
    deciding = threading.Thread(target=decide, daemon=True)
    deciding.start()
    decides.wait(30)
    assert returns(lambda: ledger.left(200 * MIB))
    assert returns(deciding.join)
    assert gate.in_flight == 0


class Finalised:
    """Of the app's own, which at its end asks for something."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self.ask, self.itself = ask, self

    def __del__(self) -> None:
        self.ask()


def test_a_finaliser_that_reads_memory_in_the_middle_of_a_reading(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal handler may, which comes like this too."""
    headrooms: list[int] = []
    Finalised(lambda: headrooms.append(service.monitor.read().headroom))
    collecting(monkeypatch, MemoryMonitor, "_update")
    assert returns(service.monitor.read)
    assert headrooms == [service.monitor.headroom()]


def test_a_finaliser_that_reserves_while_another_one_does_is_told(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", lambda report: reported.append(report.exc_value))
    ledger = ledger_of(service.monitor)
    Finalised(reserve(MIB, monitor=service.monitor).__enter__)
    collecting(monkeypatch, Promises, "left")
    assert returns(lambda: ledger.left(200 * MIB))
    assert [str(error).startswith("This thread is in the middle of deciding") for error in reported] == [True]
    assert ledger.promised == 0


def test_a_finaliser_that_makes_the_ledger_which_is_being_made(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another thread may, which comes between like this too."""
    monitor = MemoryMonitor(root=service.monitor.root)
    found: list[Ledger] = []
    Finalised(lambda: found.append(ledger_of(monitor)))
    collecting(monkeypatch, Ledger, "__init__")
    assert returns(lambda: found.append(ledger_of(monitor)))
    assert found[0] is found[1] is ledger_of(monitor)


def test_a_finaliser_that_makes_the_shared_monitor_which_is_being_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource_monitor.monitor._default", {})
    found: list[MemoryMonitor] = []
    Finalised(lambda: found.append(default_monitor()))
    collecting(monkeypatch, MemoryMonitor, "__init__")
    assert returns(lambda: found.append(default_monitor()))
    assert found[0] is found[1] is default_monitor()


# --- the lock ---


def test_what_is_to_be_done_soon_is_done_at_once_where_nobody_is_inside() -> None:
    lock = DeferringLock()

    def act(*arguments: int) -> tuple[int, ...]:
        with pytest.raises(RuntimeError):
            lock.__enter__()  # for this is inside
        return arguments

    assert lock.soon(act, 1, 2) == (1, 2)
    with lock:
        pass


def test_otherwise_in_its_order_as_the_last_thing_inside() -> None:
    lock, done = DeferringLock(), []

    def act(number: int, *more: int) -> None:
        with pytest.raises(RuntimeError):
            lock.__enter__()
        done.append((number, *more))
        if number == 1:
            assert lock.soon(act, 3) is None

    with lock:
        assert lock.soon(act, 1) is None
        lock.soon(act, 2, 22)
        assert done == []
    assert done == [(1,), (2, 22), (3,)]
    with lock:
        pass


def test_by_the_thread_that_is_inside() -> None:
    lock, done = DeferringLock(), []
    with lock:
        thread = threading.Thread(target=lambda: lock.soon(lambda: done.append(threading.get_ident())))
        thread.start()
        thread.join()
        assert done == []
    assert done == [threading.get_ident()]


def test_what_fails_at_once_is_the_caller_s_error() -> None:
    lock = DeferringLock()
    with pytest.raises(ValueError, match="invalid literal"):
        lock.soon(int, "x")
    with lock:
        pass


def test_one_thread_at_a_time_is_inside() -> None:
    lock, over = DeferringLock(), []

    def enter() -> None:
        with lock:
            over.append("second")

    thread = threading.Thread(target=enter)
    with lock:
        thread.start()
        thread.join(0.1)
        over.append("first")
    thread.join()
    assert over == ["first", "second"]


def test_a_thread_that_is_inside_is_told_so_and_does_not_wait_for_itself() -> None:
    lock, over = DeferringLock(), []
    told = r"^This thread is in the middle of deciding about memory, .* call_soon_threadsafe\(\)\.$"

    def enter_twice() -> None:
        with lock, pytest.raises(RuntimeError, match=told):
            lock.__enter__()
        with lock:
            over.append("as ever")

    assert returns(enter_twice)
    assert over == ["as ever"]


def test_an_error_inside_goes_on_and_leaves_the_lock_free() -> None:
    lock, done = DeferringLock(), []

    def fail() -> None:
        with lock:
            lock.soon(done.append, 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert done == [1]
    with lock:  # which would raise
        pass


def test_what_goes_wrong_in_what_is_deferred_is_nobody_s_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", lambda report: reported.append(report.exc_type))
    lock, done = DeferringLock(), []
    with lock:
        lock.soon(int, "x")
        lock.soon(done.append, 1)
    assert reported == [ValueError]
    assert done == [1]


def test_what_is_to_be_deferred_has_to_be_said() -> None:
    lock = DeferringLock()
    with lock, pytest.raises(TypeError, match=r"^soon\(\) takes what to call, and its arguments\.$"):
        lock.soon()  # type: ignore[call-arg]


def test_a_lock_with_itself_among_what_was_deferred_is_collected() -> None:
    def make() -> None:
        lock = DeferringLock()
        lock.__enter__()
        lock.soon(lambda: lock)

    def alive() -> int:
        return sum(type(found) is DeferringLock for found in gc.get_objects())

    before = alive()
    make()
    assert alive() == before + 1
    gc.collect()
    assert alive() == before
