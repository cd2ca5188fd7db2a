from collections.abc import Callable

import pytest
from machine import MIB, Machine

from resource_monitor import resource
from resource_monitor.errors import NotApplicable, ProbeError
from resource_monitor.monitor import MemoryMonitor
from resource_monitor.resource import Resource

Figure = Callable[[Resource], int]
FIGURES = pytest.mark.parametrize("figure", [Resource.limit, Resource.used, Resource.available])


@pytest.fixture
def monitor(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> MemoryMonitor:
    machine.container(limit=256 * MIB, usage=100 * MIB, inactive_file=20 * MIB)
    monitor = MemoryMonitor(root=str(machine))
    monkeypatch.setattr(resource, "default_monitor", lambda: monitor)
    return monitor


class Holding:
    """An allocator that holds ``dirty`` bytes unused."""

    def __init__(self, dirty: int) -> None:
        self._dirty = dirty

    def dirty(self) -> int:
        return self._dirty


def hold(monitor: MemoryMonitor, dirty: int) -> None:
    monitor.allocator = Holding(dirty)  # type: ignore[assignment]
    monitor._full_due = 0.0  # the allocator is asked with the next full reading that is due


@pytest.mark.usefixtures("monitor")
def test_os_memory_is_the_operating_systems_view() -> None:
    assert Resource.OS_MEMORY.limit() == 256 * MIB
    assert Resource.OS_MEMORY.used() == 100 * MIB
    assert Resource.OS_MEMORY.available() == (256 - 100 + 20) * MIB


def test_memory_adds_what_the_allocator_would_give_back(monitor: MemoryMonitor) -> None:
    hold(monitor, 10 * MIB)
    assert Resource.MEMORY.limit() == 256 * MIB
    assert Resource.MEMORY.available() == (256 - 100 + 20 + 10) * MIB
    assert Resource.MEMORY.used() == (100 - 20 - 10) * MIB
    assert Resource.OS_MEMORY.available() == (256 - 100 + 20) * MIB


def test_no_more_is_available_than_the_limit(monitor: MemoryMonitor) -> None:
    hold(monitor, 500 * MIB)
    assert Resource.MEMORY.available() == 256 * MIB
    assert Resource.MEMORY.used() == 0


def test_an_allocator_has_use_and_spare_but_no_limit() -> None:
    block = bytearray(8 * MIB)
    assert Resource.ALLOCATOR_MEMORY.used() >= len(block)
    assert Resource.ALLOCATOR_MEMORY.available() >= 0
    with pytest.raises(NotApplicable, match=r"no limit of its own; ask Resource\.OS_MEMORY"):
        Resource.ALLOCATOR_MEMORY.limit()


@pytest.mark.parametrize("kind", [Resource.MEMORY, Resource.OS_MEMORY])
def test_without_any_limit_there_is_nothing_to_tell(
    kind: Resource, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.path("/proc/meminfo").unlink()
    monitor = MemoryMonitor(root=str(machine))
    monkeypatch.setattr(resource, "default_monitor", lambda: monitor)
    for figure in (kind.limit, kind.used):
        with pytest.raises(NotApplicable, match="declare a limit with RESOURCE_MONITOR_LIMIT"):
            figure()


@FIGURES
@pytest.mark.parametrize("kind", [Resource.MEMORY, Resource.OS_MEMORY])
def test_a_file_that_cannot_be_read_is_named(
    figure: Figure, kind: Resource, monitor: MemoryMonitor, machine: Machine
) -> None:
    machine.write("/proc/meminfo", "")
    machine.write("/sys/fs/cgroup/memory.max", "?")
    with pytest.raises(ProbeError, match="/proc/meminfo"):
        figure(kind)


@FIGURES
def test_the_real_machine_answers(figure: Figure) -> None:
    assert figure(Resource.MEMORY) > 0
