"""Programs that allocate until they are refused, inside real cgroups: none is killed, and freed memory can be used."""

from pathlib import Path

import pytest
from machine import MIB, Machine
from programs import MakeCgroup, preloaded, run_python
from test_truth import disk, uncached_file  # noqa: F401 (fixtures)

ALLOCATORS = {
    "glibc": (None, {}),
    "jemalloc": ("jemalloc", {}),
    "mimalloc": ("mimalloc", {}),
    "tcmalloc": ("tcmalloc_minimal", {}),
    "no pymalloc": (None, {"PYTHONMALLOC": "malloc"}),
    "no pymalloc, jemalloc": ("jemalloc", {"PYTHONMALLOC": "malloc"}),
    "debug": (None, {"PYTHONMALLOC": "debug"}),
    "malloc_debug": (None, {"PYTHONMALLOC": "malloc_debug"}),
}

SHAPES = {
    "big": "bytearray(b'x') * 4_000_000",
    "zeroed": "bytearray(3_000_000)",
    "medium": "b'x' * 20_000",
    "small": "{'number': n, 'text': str(n)}",
}

UNTIL_REFUSED = """
    import json, time
    from resource_monitor.guard import AllocationGuard

    AllocationGuard().install()
    held, n = [], 0
    try:
        while True:
            held.append(SHAPE)
            n += 1
    except MemoryError:
        pass
    for block in held:
        if type(block) is bytearray:
            block[::4096] = b"y" * len(range(0, len(block), 4096))
    block = None
    held.clear()
    time.sleep(0.1)  # an allocator that had nothing to give back is not asked again at once
    for _ in range(3):
        b"x" * (LIMIT // 5)
    print(json.dumps(n))
"""

CALLS = """
    import ctypes, json, os, sys, threading
    from resource_monitor.guard import AllocationGuard

    MIB = 1 << 20
    python = ctypes.CDLL(None)
    for name, arguments in {"Malloc": 1, "Calloc": 2, "Realloc": 2}.items():
        function = getattr(python, "PyMem_Raw" + name)
        function.restype = ctypes.c_void_p
        function.argtypes = [ctypes.c_size_t] * arguments
    python.PyMem_RawRealloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    python.PyMem_RawFree.argtypes = [ctypes.c_void_p]
    python.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    guard = AllocationGuard()
    guard.install()
"""
"""The RAW domain as C calls it: without the GIL, which ``CDLL`` lets go of."""


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_program_that_takes_all_it_can_get_is_refused_and_not_killed(
    child_cgroup: MakeCgroup, allocator: str, shape: str
) -> None:
    library, env = ALLOCATORS[allocator]
    env = preloaded(library, **env) if library else env
    limit = 96 * MIB
    program = UNTIL_REFUSED.replace("SHAPE", SHAPES[shape]).replace("LIMIT", str(limit))
    cgroup = child_cgroup(limit)
    assert run_python(cgroup, program, env=env) > 0
    assert cgroup.peak() > 0.8 * limit


@pytest.mark.parametrize("library", [None, "jemalloc"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_larger_limit_is_used_up_as_well(child_cgroup: MakeCgroup, library: str | None, shape: str) -> None:
    limit = 256 * MIB
    program = UNTIL_REFUSED.replace("SHAPE", SHAPES[shape]).replace("LIMIT", str(limit))
    cgroup = child_cgroup(limit)
    run_python(cgroup, program, env=preloaded(library) if library else None)
    assert cgroup.peak() > 0.9 * limit


@pytest.mark.parametrize("library", [None, "jemalloc"])
def test_room_given_to_a_block_is_not_given_again_before_the_block_is_touched(
    child_cgroup: MakeCgroup, library: str | None
) -> None:
    program = (
        CALLS
        + """
    size, blocks = 2 * MIB, []
    while len(blocks) < 1000 and (block := python.PyMem_RawCalloc(1, size)):
        blocks.append(block)
    for block in blocks:
        python.memset(block, 1, size)
    print(json.dumps(len(blocks) * size))
    """
    )
    taken = run_python(child_cgroup(128 * MIB), program, env=preloaded(library) if library else None)
    assert 64 * MIB < taken < 128 * MIB


@pytest.mark.parametrize("call", ["Malloc(size)", "Calloc(1, size)", "Realloc(None, size)"])
def test_threads_that_race_without_the_gil_get_no_more_than_there_is(child_cgroup: MakeCgroup, call: str) -> None:
    program = (
        CALLS
        + """
    size, taken = 5 * MIB, []
    start, end = threading.Barrier(40), threading.Barrier(40)

    def take():
        start.wait()
        for _ in range(3):
            if block := python.PyMem_RawCALL:
                taken.append(block)
                python.memset(block, 1, size)
        end.wait()

    threads = [threading.Thread(target=take) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps([len(taken), guard.statistics().refusals]))
    """.replace("CALL", call)
    )
    taken, refused = run_python(child_cgroup(128 * MIB), program)
    assert taken + refused == 120
    assert 10 <= taken < 128 / 5


def test_threads_that_wait_for_data_hold_the_room_for_it(child_cgroup: MakeCgroup) -> None:
    """A read of n bytes allocates them at once and fills them as the data comes."""
    program = """
        import json, os, threading
        from resource_monitor.guard import AllocationGuard

        AllocationGuard().install()
        pipes = [os.pipe() for _ in range(60)]
        waiting, done = threading.Semaphore(0), []

        def read(pipe):
            with open(pipe, "rb") as file:
                try:
                    waiting.release()
                    done.append(len(file.read(4_000_000)))
                except MemoryError:
                    done.append(0)

        threads = [threading.Thread(target=read, args=[out]) for out, _ in pipes]
        for thread in threads:
            thread.start()
        for _ in threads:
            waiting.acquire()
        for _, end in pipes:
            try:
                with open(end, "wb", buffering=0) as file:
                    left = 4_000_000
                    while left:
                        left -= file.write(bytes(min(left, 65536)))
            except BrokenPipeError:
                pass
        for thread in threads:
            thread.join()
        print(json.dumps(done))
    """
    done = run_python(child_cgroup(128 * MIB), program)
    assert len(done) == 60
    assert 5 < done.count(4_000_000) < 32


def test_a_cgroup_full_of_page_cache_refuses_nothing(child_cgroup: MakeCgroup, uncached_file: Path) -> None:  # noqa: F811
    """Nor are its limits read more than ten times a second, though what is reclaimable has to be looked at."""
    program = """
        import json, sys, time
        from resource_monitor.guard import AllocationGuard

        guard = AllocationGuard()
        began = time.monotonic()
        guard.install()
        with open(sys.argv[1], "rb") as file:
            while file.read(1 << 20):
                pass
        for _ in range(5):
            blocks = [b"x" * (1 << 20) for _ in range(50)]
            del blocks
        statistics = guard.statistics()
        print(json.dumps([statistics.refusals, statistics.full_checks, time.monotonic() - began]))
    """
    cgroup = child_cgroup(96 * MIB)
    refusals, full_checks, seconds = run_python(cgroup, program, uncached_file)
    assert refusals == 0
    assert full_checks <= 2 + 10 * seconds
    assert cgroup.peak() > 90 * MIB


def test_what_the_kernel_would_reclaim_is_looked_at_when_it_is_needed(
    child_cgroup: MakeCgroup, machine: Machine
) -> None:
    """It may go, and come, while usage stands still."""
    machine.container(limit=300 * MIB, usage=200 * MIB, inactive_file=80 * MIB)
    program = """
        import json, sys, time
        from pathlib import Path
        from resource_monitor import MemoryMonitor
        from resource_monitor.guard import AllocationGuard

        def taken():
            try:
                return len(b"x" * (120 << 20)) >> 20
            except MemoryError:
                return 0

        def set_reclaimable(mebibytes):
            stat.write_text(f"inactive_file {mebibytes << 20}\\n")

        stat = Path(sys.argv[1], "sys/fs/cgroup/memory.stat")
        AllocationGuard(MemoryMonitor(root=sys.argv[1])).install()
        took = [taken()]
        set_reclaimable(0)
        took.append(taken())
        set_reclaimable(80)
        time.sleep(0.002)  # it was looked at a moment ago
        took.append(taken())
        print(json.dumps(took))
    """
    assert run_python(child_cgroup(512 * MIB), program, machine) == [120, 0, 120]


def test_on_glibc_a_block_that_grows_needs_room_for_what_it_grows_by(child_cgroup: MakeCgroup) -> None:
    program = """
        import json
        from resource_monitor.guard import AllocationGuard

        AllocationGuard().install()
        block = bytearray(b"x") * (240 << 20)
        block += b"y" * (8 << 20)
        sizes = [len(block) >> 20]
        try:
            block *= 3
        except MemoryError:
            sizes.append(len(block) >> 20)
        print(json.dumps(sizes))
    """
    assert run_python(child_cgroup(384 * MIB), program) == [248, 248]


def test_what_another_process_takes_is_noticed(child_cgroup: MakeCgroup) -> None:
    parent = child_cgroup(160 * MIB)
    program = """
        import json, subprocess, sys
        from resource_monitor.guard import AllocationGuard

        AllocationGuard().install()
        b"x" * (100 << 20)
        taker = "x = b'x' * (100 << 20); print(flush=True); input()"
        with subprocess.Popen([sys.executable, "-c", taker], stdin=-1, stdout=-1) as process:
            process.stdout.read(1)
            try:
                b"x" * (100 << 20)
            except MemoryError:
                print(json.dumps("refused"))
            process.communicate(b"\\n")
        b"x" * (100 << 20)
    """
    assert run_python(parent, program) == "refused"


def test_a_limit_that_is_lowered_or_raised_is_followed(child_cgroup: MakeCgroup) -> None:
    cgroup = child_cgroup(256 * MIB)
    program = """
        import json, pathlib, sys, time
        from resource_monitor.guard import AllocationGuard

        guard = AllocationGuard(floor="10%")
        guard.install()

        def passes():
            time.sleep(0.3)  # limits are read every 0.1 s
            try:
                b"x" * (100 << 20)
            except MemoryError:
                return False
            return True

        results = [passes()]
        for limit in map(int, sys.argv[2:]):
            for name in ("limit_in_bytes", "max"):
                file = pathlib.Path(sys.argv[1], "memory." + name)
                if file.exists():
                    file.write_text(str(limit))
            results.append(passes())
            results.append(guard.statistics().floor)
        print(json.dumps(results))
    """
    before, lowered, low_floor, raised, high_floor = run_python(cgroup, program, cgroup.path, 96 * MIB, 200 * MIB)
    assert [before, lowered, raised] == [True, False, True]
    assert abs(low_floor - 9.6 * MIB) < 100
    assert abs(high_floor - 20 * MIB) < 100


def test_a_process_that_is_moved_is_guarded_where_it_is(child_cgroup: MakeCgroup) -> None:
    first, second = child_cgroup(512 * MIB), child_cgroup(96 * MIB)
    program = """
        import json, os, sys, time
        from resource_monitor.guard import AllocationGuard

        AllocationGuard().install()
        b"x" * (100 << 20)
        with open(sys.argv[1], "w") as file:
            file.write(str(os.getpid()))
        for _ in range(4):  # the move is noticed by a check, and followed when Python runs on
            time.sleep(0.11)
            b"x" * (1 << 20), [bytearray(60_000) for _ in range(500)]
        try:
            b"x" * (100 << 20)
        except MemoryError:
            print(json.dumps("refused"))
    """
    assert run_python(first, program, second.path / "cgroup.procs") == "refused"
    assert second.oom_kills() == 0


def test_statistics_and_the_log_say_what_was_refused_once_a_second(child_cgroup: MakeCgroup) -> None:
    program = """
        import io, json, logging
        from dataclasses import asdict
        log = io.StringIO()
        logging.basicConfig(stream=log, format="%(levelname)s %(name)s %(message)s")
        from resource_monitor.guard import AllocationGuard

        guard = AllocationGuard()
        guard.install()
        for _ in range(5):
            try:
                b"x" * (100 << 20)
            except MemoryError:
                pass
        print(json.dumps([log.getvalue(), asdict(guard.statistics())]))
    """
    log, statistics = run_python(child_cgroup(96 * MIB), program)
    [line] = log.splitlines()
    assert line.startswith("WARNING resource_monitor Allocation of 100.0 MiB refused with ")
    assert line.endswith(" MiB left of the memory limit; 1 refused so far.")
    assert 30 < float(line.split(" with ")[1].split()[0]) < 96
    assert statistics["refusals"] == 5
    assert statistics["small_refusals"] == 0
    assert statistics["floor"] == 8 * MIB
    assert statistics["checks"] >= statistics["full_checks"] > 0


def test_relief_comes_before_refusal(child_cgroup: MakeCgroup) -> None:
    """100 MB of freed small blocks, between blocks that stay, are nothing that malloc gives back by itself."""
    program = """
        import json
        from resource_monitor.guard import AllocationGuard

        guard = AllocationGuard()
        guard.install()
        held = [bytearray(60_000) for _ in range(1600)]
        del held[::2], held[::3]
        kept = bytearray(b"x") * (40 << 20)
        held = [bytearray(60_000) for _ in range(300)]
        statistics = guard.statistics()
        print(json.dumps([statistics.refusals, statistics.reliefs, statistics.relieved]))
    """
    refusals, reliefs, relieved = run_python(child_cgroup(128 * MIB), program)
    assert refusals == 0
    assert reliefs >= 1
    assert relieved > 10 * MIB


def test_small_steps_go_on_when_large_blocks_are_refused(child_cgroup: MakeCgroup) -> None:
    program = """
        import json
        from resource_monitor.guard import AllocationGuard

        guard = AllocationGuard()
        guard.install()
        held = []
        try:
            while True:
                held.append(bytearray(b"x") * (1 << 20))
        except MemoryError:
            small = [bytearray(b"x") * 10_000 for _ in range(200)]
        print(json.dumps(guard.statistics().small_refusals))
    """
    assert run_python(child_cgroup(128 * MIB), program) == 0


def test_arenas_that_were_refused_are_not_asked_for_again_at_once(child_cgroup: MakeCgroup) -> None:
    """pymalloc asks for one for each small object that it has no room for, of which a request may need thousands."""
    program = """
        import json
        from resource_monitor.guard import AllocationGuard

        guard = AllocationGuard()
        guard.install()
        small, made = [None] * 2_000_000, 0  # grown to its size, so that none but small objects are asked for
        held = []
        try:
            while True:
                held.append(bytearray(b"x") * 300_000)
        except MemoryError:
            held.pop()
        before = guard.statistics()
        try:
            while True:
                small[made] = [made]
                made += 1
        except MemoryError:
            small.clear()
        after = guard.statistics()
        print(json.dumps([made, after.small_refusals - before.small_refusals]))
    """
    made, refusals = run_python(child_cgroup(96 * MIB), program)
    assert made > 20_000
    assert 0 < refusals < made / 10
