"""What an allocator holds unused is told, counted as available, and given back before anyone is refused."""

import pytest
from machine import MIB
from programs import MakeCgroup, preloaded, run_python

# jemalloc gives dirty pages back by itself within ten seconds, and of a huge page given back in part the whole stays
# charged: exact figures need neither.
KEEP_DIRTY = {"MALLOC_CONF": "dirty_decay_ms:-1,thp:never"}


@pytest.mark.parametrize(
    ("library", "name"), [("jemalloc", "jemalloc"), (None, "glibc"), ("tcmalloc_minimal", "unknown")]
)
def test_the_allocator_behind_malloc_is_recognised(child_cgroup: MakeCgroup, library: str | None, name: str) -> None:
    program = """
        import json
        from resource_monitor import MemoryMonitor
        allocator = MemoryMonitor().allocator
        print(json.dumps([allocator.name, allocator.object, allocator.dirty() is not None, allocator.relieve()]))
    """
    env = preloaded(library) if library else None
    found, object_, tells, relieves = run_python(child_cgroup(128 * MIB), program, env=env)
    assert found == name
    assert (library or "libc") in object_
    assert (tells, relieves) == (name == "jemalloc", name != "unknown")


def test_jemallocs_dirty_pages_are_available_and_given_back(child_cgroup: MakeCgroup) -> None:
    """Blocks of exactly one size class, 80 KiB: of a smaller one jemalloc would count pages that were never touched."""
    program = """
        import json
        from resource_monitor import Resource, default_monitor

        blocks = [bytearray(b"x") * ((80 << 10) - 1) for _ in range(640)]
        blocks.clear()
        monitor = default_monitor()
        before = [monitor.allocator.dirty(), Resource.MEMORY.available(), Resource.OS_MEMORY.available()]
        monitor.relieve()
        print(json.dumps([*before, monitor.allocator.dirty(), Resource.OS_MEMORY.available()]))
    """
    dirty, available, os_available, dirty_after, os_after = run_python(
        child_cgroup(128 * MIB), program, env=preloaded("jemalloc", **KEEP_DIRTY)
    )
    assert dirty > 40 * MIB
    assert abs(available - os_available - dirty) < 2 * MIB
    assert dirty_after < 1 * MIB
    assert os_after - os_available > dirty - 2 * MIB


def test_jemallocs_statistics_are_those_of_this_moment(child_cgroup: MakeCgroup) -> None:
    program = """
        import json
        from dataclasses import asdict
        from resource_monitor.allocator import allocator
        before = allocator().statistics()
        blocks = [bytearray(b"x") * (64 << 10) for _ in range(480)]
        print(json.dumps([asdict(before), asdict(allocator().statistics())]))
    """
    before, after = run_python(child_cgroup(128 * MIB), program, env=preloaded("jemalloc"))
    assert after["allocated"] - before["allocated"] >= 30 * MIB
    assert after["allocated"] <= after["active"] <= after["resident"]
    assert after["metadata"] > 0
    assert after["mapped"] >= after["active"]


@pytest.mark.parametrize("library", ["jemalloc", None])
def test_relief_comes_before_refusal(child_cgroup: MakeCgroup, library: str | None) -> None:
    """Blocks of 1000 bytes come from malloc's heap, and the last one pins its end: nothing goes back by itself."""
    program = """
        import json
        from resource_monitor import MemoryMonitor
        from resource_monitor.middleware.gate import Gate

        monitor = MemoryMonitor()
        gate = Gate(min_available="48MiB", monitor=monitor)
        blocks = [bytes(1000) for _ in range(75_000)]
        while monitor.read().headroom >= 40 << 20:
            blocks.extend(bytes(1000) for _ in range(1000))
        full = gate.enter("/")
        del blocks[:-1]
        before = monitor.read().headroom
        for _ in range(3):
            freed = gate.enter("/")
        print(json.dumps([full, before, freed, monitor.read().headroom, gate.statistics().shed]))
    """
    # while the blocks were in use a purge could free nothing, and the next try of a blind trim has to wait a little:
    # hence the short pause, as between any two requests
    env = preloaded("jemalloc", **KEEP_DIRTY) if library else None
    program = program.replace("freed = gate", "__import__('time').sleep(0.02); freed = gate")
    full, before, freed, after, shed = run_python(child_cgroup(128 * MIB), program, env=env)
    assert full is False
    assert before < 48 * MIB, "the allocator gave it back by itself: this test shows nothing"
    assert freed is True
    assert after > 64 * MIB
    assert shed == 1
