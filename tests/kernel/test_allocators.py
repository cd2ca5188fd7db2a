"""What an allocator holds unused is told, counted as available, and given back before anyone is refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cffi
import pytest
from machine import MIB
from programs import TIMEOUT, MakeCgroup, environment, preloaded, run_python

import resource_monitor

# jemalloc gives dirty pages back by itself within ten seconds, and of a huge page given back in part the whole stays
# charged: exact figures need neither.
KEEP_DIRTY = {"MALLOC_CONF": "dirty_decay_ms:-1,thp:never"}


ALLOCATORS = [
    pytest.param("jemalloc", "jemalloc", id="jemalloc"),
    pytest.param(None, "glibc", id="glibc"),
    pytest.param("mimalloc", "mimalloc", id="mimalloc"),
    pytest.param("tcmalloc_minimal", "tcmalloc", id="tcmalloc"),
]
# glibc's free bytes say nothing about whole pages, and mimalloc keeps no such figure.
TELLING = ("jemalloc", "tcmalloc")


def with_library(library: str | None, **more: str) -> dict[str, str] | None:
    return preloaded(library, **more) if library else None


@pytest.mark.parametrize(("library", "name"), ALLOCATORS)
def test_the_allocator_behind_malloc_is_recognised(child_cgroup: MakeCgroup, library: str | None, name: str) -> None:
    program = """
        import json
        from resource_monitor import MemoryMonitor, allocator_stats_enabled
        allocator = MemoryMonitor().allocator
        figures = [allocator.dirty() is not None, allocator.relieve(), allocator_stats_enabled()]
        print(json.dumps([allocator.name, allocator.object, *figures]))
    """
    found, object_, tells, relieves, counts = run_python(child_cgroup(128 * MIB), program, env=with_library(library))
    assert found == name
    assert (library or "libc") in object_
    assert (tells, relieves, counts) == (name in TELLING, True, True)


@pytest.mark.parametrize(
    ("library", "words"),
    [
        ("jemalloc", ["Begin jemalloc statistics", "Allocated: ", "End jemalloc statistics"]),
        (None, ["<malloc version=", "<system type=", "</malloc>"]),
        ("mimalloc", ["heap stats", "reserved", "process:"]),
        ("tcmalloc_minimal", ["MALLOC:", "Bytes in use by application"]),
    ],
)
def test_every_allocator_reports_in_its_own_words(
    child_cgroup: MakeCgroup, library: str | None, words: list[str]
) -> None:
    program = """
        import io, json
        from resource_monitor import print_allocator_stats
        report = io.StringIO()
        print_allocator_stats(report)
        print(json.dumps(report.getvalue()))
    """
    report = run_python(child_cgroup(128 * MIB), program, env=with_library(library))
    assert [word for word in words if word not in report] == []


@pytest.mark.parametrize(("library", "name"), ALLOCATORS)
def test_what_is_held_unused_is_given_back(child_cgroup: MakeCgroup, library: str | None, name: str) -> None:
    """Of blocks of 16 KiB all but the last one, which pins the heap's end, are freed."""
    program = """
        import json
        from dataclasses import asdict
        from resource_monitor import Resource
        from resource_monitor.allocator import allocator

        blocks = [bytearray(b"x") * (16 << 10) for _ in range(4096)]
        used = [asdict(allocator().statistics()), Resource.OS_MEMORY.available()]
        del blocks[:-1]
        held = [asdict(allocator().statistics()), allocator().dirty()]
        assert allocator().relieve()
        print(json.dumps([*used, *held, Resource.OS_MEMORY.available()]))
    """
    keep = KEEP_DIRTY if library == "jemalloc" else {}
    used, left, held, dirty, left_after = run_python(
        child_cgroup(256 * MIB), program, env=with_library(library, **keep)
    )
    assert used["mapped"] > 64 * MIB
    if name != "mimalloc":  # what is committed is all that it tells
        assert used["allocated"] - held["allocated"] > 60 * MIB
        assert held["dirty"] > 50 * MIB
    if name in TELLING:
        assert dirty == held["dirty"]
    # mimalloc keeps about half of it in segments that it may use again, however often it is asked
    assert left_after - left > (24 if name == "mimalloc" else 56) * MIB


IMPOSTOR = """
int mallctl(const char *name, void *old, unsigned long *size, void *new, unsigned long length) { return 0; }
int mallctlnametomib(const char *name, unsigned long *mib, unsigned long *length) { return 0; }
int mallctlbymib(const unsigned long *mib, unsigned long n, void *old, unsigned long *size, void *new, unsigned long l)
{ return 0; }
void malloc_stats_print(void (*write)(void *, const char *), void *to, const char *options) {}
void mi_collect(_Bool force) {}
void mi_process_info(void) {}
void mi_stats_print_out(void) {}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@pytest.mark.parametrize(("library", "name"), ALLOCATORS)
def test_an_allocator_that_a_library_brought_for_itself_is_not_mistaken_for_the_heap(
    child_cgroup: MakeCgroup, tmp_path: Path, library: str | None, name: str
) -> None:
    source, impostor = tmp_path / "impostor.c", tmp_path / "impostor.so"
    source.write_text(IMPOSTOR)
    subprocess.run(["cc", "-w", "-shared", "-fPIC", "-o", impostor, source], check=True)
    program = """
        import ctypes, json, sys
        ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
        from resource_monitor.allocator import allocator
        print(json.dumps([allocator().name, allocator().object]))
    """
    found, object_ = run_python(child_cgroup(128 * MIB), program, impostor, env=with_library(library))
    assert found == name
    assert "impostor" not in object_


def position_dependent_python() -> str | None:
    """An interpreter of this version whose addresses are fixed at link time (ELF type EXEC), as Debian's are."""
    version = "{}.{}".format(*sys.version_info)
    for path in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        if Path(path).exists() and Path(path).read_bytes()[16:18] == b"\x02\x00":
            return path
    return None


@pytest.mark.skipif(position_dependent_python() is None, reason="there is no position-dependent interpreter")
@pytest.mark.parametrize(("library", "name"), ALLOCATORS)
def test_under_a_position_dependent_interpreter_malloc_is_not_taken_for_its_own(library: str | None, name: str) -> None:
    """It takes malloc's address, and with that every other object's malloc becomes an entry of its own PLT."""
    python = position_dependent_python()
    assert python is not None
    program = "from resource_monitor.allocator import allocator; print(allocator().name, allocator().relieve())"
    places = {Path(module.__file__ or "").resolve().parent.parent for module in (resource_monitor, cffi)}
    env = environment({"PYTHONPATH": os.pathsep.join(map(str, places)), **(with_library(library) or {})})
    done = subprocess.run([python, "-c", program], env=env, capture_output=True, text=True, check=True, timeout=TIMEOUT)
    assert done.stdout.split() == [name, "True"]


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
        full = gate.enter("GET", "/") is not None
        del blocks[:-1]
        before = monitor.read().headroom
        for _ in range(3):
            freed = gate.enter("GET", "/") is not None
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


def test_what_threads_freed_on_glibc_can_be_used_by_others(child_cgroup: MakeCgroup) -> None:
    """Each thread has an arena, whose top malloc_trim leaves alone and which free gives back
    only beyond 16 MiB and more unless told otherwise."""
    program = """
        import json, threading
        from resource_monitor import AllocationGuard

        AllocationGuard().install()
        together = threading.Barrier(12)

        def work():
            for _ in range(20):
                together.wait()
                try:
                    block = b"x" * 8_000_000
                    block = None
                except MemoryError:
                    pass

        threads = [threading.Thread(target=work) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(json.dumps(len(b"x" * 60_000_000)))
    """
    assert run_python(child_cgroup(96 * MIB), program) == 60_000_000
