"""What can be said of the guard without installing it, which the process that runs the tests must be spared."""

import sysconfig

import pytest
from machine import MIB, Machine, Service

from resource_monitor import guard
from resource_monitor.errors import ConfigurationError, GuardError
from resource_monitor.guard import AllocationGuard, ensure_installed, unsupported
from resource_monitor.middleware import MemoryBackpressureMiddleware
from resource_monitor.monitor import MemoryMonitor


@pytest.fixture
def free_threaded(monkeypatch: pytest.MonkeyPatch) -> None:
    real = sysconfig.get_config_var
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: 1 if name == "Py_GIL_DISABLED" else real(name))


def test_a_new_guard_is_not_at_work(service: Service) -> None:
    assert not AllocationGuard(service.monitor).installed


def test_uninstalling_what_was_not_installed_does_nothing(service: Service) -> None:
    AllocationGuard(service.monitor).uninstall()


def test_an_interpreter_with_the_gil_can_be_guarded() -> None:
    assert unsupported() is None


@pytest.mark.usefixtures("free_threaded")
def test_a_free_threaded_interpreter_is_refused(service: Service) -> None:
    with pytest.raises(GuardError, match=r"^A free-threaded interpreter has .*; use a build with the GIL, or"):
        AllocationGuard(service.monitor).install()
    with pytest.raises(GuardError, match="free-threaded"):
        ensure_installed(service.monitor)


@pytest.mark.usefixtures("free_threaded")
def test_a_free_threaded_interpreter_is_served_without_the_guard_unless_it_was_asked_for() -> None:
    assert MemoryBackpressureMiddleware(None).statistics().admitted == 0  # type: ignore[arg-type]
    with pytest.raises(GuardError, match="allocation_guard=False"):
        MemoryBackpressureMiddleware(None, allocation_guard=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("floor", ["x", "", -1, "-1MiB", "101%", None, True, "clamp(1MiB, 2MiB)"])
def test_a_floor_that_is_no_amount_is_named(service: Service, floor: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^floor: "):
        AllocationGuard(service.monitor, floor=floor)  # type: ignore[arg-type]


@pytest.mark.parametrize("floor", ["256MiB", 256 * MIB, "1GiB", "100%"])
def test_a_floor_that_leaves_nothing_is_named(service: Service, floor: int | str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^floor={floor!r} is not below the memory limit of 256\.0 MiB, "):
        AllocationGuard(service.monitor, floor=floor)


def test_the_default_floor_fits_small_and_large_limits(machine: Machine) -> None:
    for limit in (16 * MIB, 256 * MIB, 64 << 30):
        machine.container(limit=limit, usage=MIB)
        AllocationGuard(MemoryMonitor(root=str(machine)))


@pytest.mark.parametrize("events", [0, guard.lib.RM_GUARD_MOVED])
def test_events_that_come_after_uninstalling_are_nothing(events: int, caplog: pytest.LogCaptureFixture) -> None:
    guard.rm_guard_event(events)
    assert caplog.messages == []
