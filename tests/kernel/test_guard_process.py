"""The guard among what else a process does: other hooks on the allocators, forks, threads, being taken away again."""

import subprocess
import sys
from pathlib import Path

import pytest
from machine import MIB
from programs import MakeCgroup, environment, run_python

PRELUDE = """
    import ctypes, json, os, sys, threading, time, tracemalloc
    from resource_monitor.guard import AllocationGuard

    class Allocator(ctypes.Structure):
        _fields_ = [(name, ctypes.c_void_p) for name in ("ctx", "malloc", "calloc", "realloc", "free")]

    class ArenaAllocator(ctypes.Structure):
        _fields_ = [(name, ctypes.c_void_p) for name in ("ctx", "alloc", "free")]

    def words(structure):
        return [getattr(structure, name) for name, _ in structure._fields_]

    def allocators():
        found = []
        for domain in range(3):
            allocator = Allocator()
            ctypes.pythonapi.PyMem_GetAllocator(domain, ctypes.byref(allocator))
            found.append(words(allocator))
        arena = ArenaAllocator()
        ctypes.pythonapi.PyObject_GetArenaAllocator(ctypes.byref(arena))
        return [*found, words(arena)]

    def refused():
        try:
            b"x" * (200 << 20)
        except MemoryError:
            return True
        return False

    guard = AllocationGuard()
"""

LIMIT = 128 * MIB


@pytest.mark.parametrize("mode", ["default", "malloc", "debug"])
def test_uninstalling_restores_exactly_what_was_there(child_cgroup: MakeCgroup, mode: str) -> None:
    program = (
        PRELUDE
        + """
    before = allocators()
    guard.install()
    during = allocators()
    guard.uninstall()
    print(json.dumps([before, during, allocators()]))
    """
    )
    before, during, after = run_python(child_cgroup(LIMIT), program, env={"PYTHONMALLOC": mode})
    assert after == before
    assert during[0] != before[0]
    assert during[3] != before[3]
    # the other two domains end in RAW, but for malloc's own
    assert (during[1:3] == before[1:3]) == (mode != "malloc")


def test_a_guard_can_be_installed_again_and_again(child_cgroup: MakeCgroup) -> None:
    program = (
        PRELUDE
        + """
    before, states = allocators(), []
    for _ in range(50):
        guard.install()
        guard.install()
        states.append((guard.installed, refused()))
        guard.uninstall()
        guard.uninstall()
        states.append((guard.installed, allocators() == before))
    print(json.dumps(states))
    """
    )
    assert run_python(child_cgroup(LIMIT), program) == [[True, True], [False, True]] * 50


def test_after_uninstalling_nothing_is_refused(child_cgroup: MakeCgroup) -> None:
    program = (
        PRELUDE
        + """
    guard.install()
    states = [refused()]
    guard.uninstall()
    blocks = [bytes(20 << 20) for _ in range(20)]  # never touched, so never charged
    print(json.dumps([*states, len(blocks), guard.statistics().refusals]))
    """
    )
    assert run_python(child_cgroup(LIMIT), program) == [True, 20, 1]


def test_there_is_one_guard_a_process(child_cgroup: MakeCgroup) -> None:
    program = (
        PRELUDE
        + """
    from resource_monitor.errors import GuardError
    guard.install()
    try:
        AllocationGuard().install()
    except GuardError as error:
        print(json.dumps(str(error)))
    """
    )
    message = run_python(child_cgroup(LIMIT), program)
    assert message == "Another allocation guard is installed; uninstall it first, there is one a process."


def test_a_second_middleware_takes_the_guard_that_is_there(child_cgroup: MakeCgroup) -> None:
    program = (
        PRELUDE
        + """
    from resource_monitor.middleware import MemoryBackpressureMiddleware
    guard.install()
    MemoryBackpressureMiddleware(None), MemoryBackpressureMiddleware(None, allocation_guard=True)
    print(json.dumps([guard.installed, refused()]))
    """
    )
    assert run_python(child_cgroup(LIMIT), program) == [True, True]


def test_without_the_guard_the_middleware_leaves_the_allocators_alone(child_cgroup: MakeCgroup) -> None:
    program = (
        PRELUDE
        + """
    from resource_monitor.middleware import MemoryBackpressureMiddleware
    before = allocators()
    MemoryBackpressureMiddleware(None, allocation_guard=False)
    print(json.dumps(allocators() == before))
    """
    )
    assert run_python(child_cgroup(LIMIT), program) is True


# --- other hooks ---


def test_tracemalloc_above_the_guard_traces_and_the_guard_guards(child_cgroup: MakeCgroup) -> None:
    program = (
        PRELUDE
        + """
    before = allocators()
    guard.install()
    tracemalloc.start()
    kept = bytearray(10 << 20)
    states = [refused(), tracemalloc.get_traced_memory()[0] > 10 << 20]
    tracemalloc.stop()
    states.append(refused())
    guard.uninstall()
    print(json.dumps([*states, allocators() == before]))
    """
    )
    assert run_python(child_cgroup(LIMIT), program) == [True] * 4


def test_tracemalloc_below_the_guard_traces_and_the_guard_guards(child_cgroup: MakeCgroup) -> None:
    program = (
        PRELUDE
        + """
    tracemalloc.start()
    before = allocators()
    guard.install()
    kept = bytearray(10 << 20)
    states = [refused(), tracemalloc.get_traced_memory()[0] > 10 << 20]
    guard.uninstall()
    states.append(allocators() == before)
    tracemalloc.stop()
    print(json.dumps(states))
    """
    )
    assert run_python(child_cgroup(LIMIT), program) == [True] * 3


def test_a_guard_uninstalled_below_tracemalloc_lets_everything_pass_and_can_come_back(
    child_cgroup: MakeCgroup,
) -> None:
    program = (
        PRELUDE
        + """
    before = allocators()
    guard.install()
    tracemalloc.start()
    guard.uninstall()
    states = [len([bytes(20 << 20) for _ in range(20)])]
    guard.install()
    states.append(refused())
    tracemalloc.stop()
    states.append(refused())
    guard.uninstall()
    print(json.dumps([*states, allocators() == before]))
    """
    )
    assert run_python(child_cgroup(LIMIT), program) == [20, True, True, True]


def test_a_guard_that_a_hook_below_took_away_is_there_again_once_installed_again(child_cgroup: MakeCgroup) -> None:
    """tracemalloc, when stopped, puts back what it found when started, whoever came since."""
    program = (
        PRELUDE
        + """
    before = allocators()
    tracemalloc.start()
    guard.install()
    tracemalloc.stop()
    guard.install()
    states = [refused()]
    guard.uninstall()
    print(json.dumps([*states, allocators() == before]))
    """
    )
    assert run_python(child_cgroup(LIMIT), program) == [True, True]


@pytest.mark.parametrize(
    ("mode", "occasion"),
    [(mode, "a reading") for mode in ("default", "malloc", "debug")]
    + [(mode, "an arena") for mode in ("default", "debug")],
)
def test_a_guard_that_tracemalloc_took_away_comes_back_by_itself(
    child_cgroup: MakeCgroup, mode: str, occasion: str
) -> None:
    """With the next reading of whoever decides about requests, else once there is an arena that pymalloc asks for."""
    program = (
        PRELUDE
        + """
    from resource_monitor.guard import passed
    before = allocators()
    tracemalloc.start()
    guard.install()
    tracemalloc.stop()
    states = [allocators()[0] == before[0]]
    if sys.argv[1] == "a reading":
        passed()
    else:
        time.sleep(0.15)  # everything is looked at once in 0.1 s
        objects = [[n] for n in range(200_000)]
    states.append(refused())
    guard.uninstall()
    print(json.dumps([*states, allocators() == before]))
    """
    )
    assert run_python(child_cgroup(LIMIT), program, occasion, env={"PYTHONMALLOC": mode}) == [True] * 3


def test_blocks_are_charged_again_once_tracemalloc_is_gone(child_cgroup: MakeCgroup) -> None:
    """Above another hook they are not, since its block may not start where malloc's does."""
    program = (
        PRELUDE
        + """
    from resource_monitor.guard import passed
    tracemalloc.start()
    guard.install()
    tracemalloc.stop()
    passed()
    blocks = []
    try:
        while len(blocks) < 100:
            blocks.append(bytes(3 << 20))  # never touched
    except MemoryError:
        pass
    print(json.dumps(len(blocks)))
    """
    )
    assert 10 < run_python(child_cgroup(LIMIT), program) < 128 / 3


def test_below_a_hook_that_hides_the_guard_nothing_is_linked_a_second_time(
    child_cgroup: MakeCgroup, tmp_path: Path
) -> None:
    """It may call the guard for other blocks, and two hooks that call each other never end."""
    source, hook = tmp_path / "hook.c", tmp_path / "hook.so"
    source.write_text(HOOK + HIDING)
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", hook, source], check=True)
    program = (
        PRELUDE
        + """
    from resource_monitor.guard import passed
    guard.install()
    hook = ctypes.PyDLL(sys.argv[1])
    hook.hiding_install()
    above = allocators()
    passed()
    print(json.dumps([allocators() == above, refused()]))
    """
    )
    assert run_python(child_cgroup(LIMIT), program, hook) == [True, True]


HOOK = r"""
#include <stddef.h>
/* as a profiler's: counts what passes */
typedef struct { void *ctx; void *(*malloc)(void *, size_t); void *(*calloc)(void *, size_t, size_t);
                 void *(*realloc)(void *, void *, size_t); void (*free)(void *, void *); } allocator;
void PyMem_GetAllocator(int, allocator *);
void PyMem_SetAllocator(int, allocator *);
static allocator below;
static _Atomic long calls, live;
static void *count(void *block) { calls++; live += block != NULL; return block; }
static void *hook_malloc(void *self, size_t n) { return count(below.malloc(below.ctx, n)); }
static void *hook_calloc(void *self, size_t k, size_t n) { return count(below.calloc(below.ctx, k, n)); }
static void *hook_realloc(void *self, void *p, size_t n)
{
    return p ? below.realloc(below.ctx, p, n) : count(below.malloc(below.ctx, n));
}
static void hook_free(void *self, void *p) { live -= p != NULL; below.free(below.ctx, p); }
long hook_calls(void) { return calls; }
long hook_live(void) { return live; }
void hook_install(void)
{
    allocator hook = {NULL, hook_malloc, hook_calloc, hook_realloc, hook_free};
    PyMem_GetAllocator(0, &below);
    PyMem_SetAllocator(0, &hook);
}
"""
HIDING = r"""
/* has blocks of 4 KiB and a little more of its own */
#include <stdlib.h>
static void *hiding_malloc(void *self, size_t n) { return n < 8192 ? malloc(n) : below.malloc(below.ctx, n); }
void hiding_install(void)
{
    PyMem_GetAllocator(0, &below);
    allocator hook = {below.ctx, hiding_malloc, below.calloc, below.realloc, below.free};
    PyMem_SetAllocator(0, &hook);
}
"""


@pytest.mark.parametrize("order", ["below", "above"])
def test_another_librarys_hook_sees_every_block_come_and_go(
    child_cgroup: MakeCgroup, tmp_path: Path, order: str
) -> None:
    source, hook = tmp_path / "hook.c", tmp_path / "hook.so"
    source.write_text(HOOK)
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", hook, source], check=True)
    program = (
        PRELUDE
        + """
    hook = ctypes.PyDLL(sys.argv[1])

    def blocks():
        before = hook.hook_calls()
        blocks = [bytearray(b"x") * (1000 * n) for n in range(1, 200)]
        for block in blocks:
            block.extend(bytes(1500))
            del block[:len(block) // 2]
        return hook.hook_calls() - before >= 199

    if sys.argv[2] == "below":
        hook.hook_install()
    guard.install()
    if sys.argv[2] == "above":
        hook.hook_install()
    blocks()
    live = hook.hook_live()
    states = [blocks(), refused()]
    guard.uninstall()
    states.append(blocks())
    guard.install()
    states += [blocks(), refused(), abs(hook.hook_live() - live) < 100]
    print(json.dumps(states))
    """
    )
    assert run_python(child_cgroup(LIMIT), program, hook, order) == [True] * 6


# --- forks and threads ---


def test_a_forked_child_is_guarded_by_readings_of_its_own(child_cgroup: MakeCgroup) -> None:
    other = child_cgroup(2 * LIMIT)
    program = (
        PRELUDE
        + """
    guard.install()
    states = [refused()]
    out, end = os.pipe()
    if os.fork() == 0:
        with open(sys.argv[1], "w") as file:
            file.write(str(os.getpid()))
        time.sleep(0.2)
        b"x" * (1 << 20)
        time.sleep(0.2)
        b"x" * (1 << 20)
        os.write(end, json.dumps([refused(), guard.statistics().refusals]).encode())
        os._exit(0)
    os.wait()
    states.append(refused())
    print(json.dumps([*states, *json.loads(os.read(out, 100))]))
    """
    )
    assert run_python(child_cgroup(LIMIT), program, other.path / "cgroup.procs") == [True, True, False, 1]
    assert other.oom_kills() == 0


def test_a_forked_child_without_descriptors_is_guarded_as_soon_as_it_has_some(child_cgroup: MakeCgroup) -> None:
    """Those of its parent tell of the parent, so that until then nothing is refused."""
    program = (
        PRELUDE
        + """
    import resource

    guard.install()
    out, end = os.pipe()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(0) + 1, hard))
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(4):  # looked for by a check, and found when Python runs on
            time.sleep(0.12)
            b"x" * (4 << 20)
        os.write(end, json.dumps([refused(), guard.statistics().refusals]).encode())
        os._exit(0)
    _, status = os.wait()
    print(json.dumps([status, *json.loads(os.read(out, 100) or "[]")]))
    """
    )
    cgroup = child_cgroup(LIMIT)
    assert run_python(cgroup, program) == [0, True, 1]
    assert cgroup.oom_kills() == 0


def test_forking_while_threads_allocate_never_hangs(child_cgroup: MakeCgroup) -> None:
    program = (
        PRELUDE
        + """
    from resource_monitor._native import lib
    guard.install()
    lib.rm_guard_refuse_every(1 << 30)  # every allocation takes the lock
    malloc, free = ctypes.CDLL(None).PyMem_RawMalloc, ctypes.CDLL(None).PyMem_RawFree
    malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    stop = False

    def allocate():
        while not stop:
            free(malloc(100_000))
            bytearray(5000)

    threads = [threading.Thread(target=allocate) for _ in range(4)]
    for thread in threads:
        thread.start()
    statuses = []
    for _ in range(100):
        pid = os.fork()
        if pid == 0:
            lib.rm_guard_refuse_every(0)
            os._exit(0 if refused() else 1)
        statuses.append(os.waitpid(pid, 0)[1])
    stop = True
    print(json.dumps(statuses))
    """
    )
    assert run_python(child_cgroup(LIMIT), program, env={"PYTHONWARNINGS": "ignore"}) == [0] * 100


def test_a_process_can_be_started_where_others_fork_handlers_run_python(child_cgroup: MakeCgroup) -> None:
    pytest.importorskip("uvloop")
    program = (
        PRELUDE
        + """
    import asyncio, uvloop

    async def status():
        process = await asyncio.create_subprocess_exec("true")
        return await process.wait()

    async def statuses():
        first = await status()  # uvloop's handler is there before the guard's
        guard.install()
        return [first, await status(), refused()]

    print(json.dumps(uvloop.run(statuses())))
    """
    )
    assert run_python(child_cgroup(LIMIT), program) == [0, 0, True]


def test_forks_leave_no_descriptors_open(child_cgroup: MakeCgroup) -> None:
    program = (
        PRELUDE
        + """
    guard.install()
    counts = []
    for _ in range(5):
        pid = os.fork()
        if pid:
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        counts.append(len(os.listdir("/proc/self/fd")))
    print(json.dumps(counts))
    """
    )
    counts = run_python(child_cgroup(LIMIT), program)
    assert counts == counts[:1] * 5


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_worker_processes_start_as_without_the_guard(child_cgroup: MakeCgroup, tmp_path: Path, method: str) -> None:
    script = tmp_path / "script.py"
    script.write_text("""
import json, multiprocessing, sys
from resource_monitor.guard import AllocationGuard

def work(n):
    return len(b"x" * n)

if __name__ == "__main__":
    AllocationGuard().install()
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        print(json.dumps(pool.map(work, [1 << 20] * 4)))
""")
    cgroup = child_cgroup(2 * LIMIT)
    done = cgroup.run([sys.executable, script, method], env=environment(None))
    assert done.stdout == "[1048576, 1048576, 1048576, 1048576]\n", done.stderr
    assert cgroup.oom_kills() == 0


def test_refusals_are_counted_for_the_thread_they_happened_on(child_cgroup: MakeCgroup) -> None:
    program = (
        PRELUDE
        + """
    from resource_monitor.guard import thread_refusals
    guard.install()
    refused()
    counts = []
    thread = threading.Thread(target=lambda: counts.extend([thread_refusals(), refused(), thread_refusals()]))
    thread.start()
    thread.join()
    print(json.dumps([*counts, thread_refusals(), guard.statistics().refusals]))
    """
    )
    assert run_python(child_cgroup(LIMIT), program) == [0, True, 1, 1, 2]


def test_exiting_with_the_guard_installed_and_threads_allocating_is_clean(child_cgroup: MakeCgroup) -> None:
    program = (
        PRELUDE
        + """
    guard.install()
    def allocate():
        while True:
            bytearray(100_000)
    for _ in range(4):
        threading.Thread(target=allocate, daemon=True).start()
    time.sleep(0.05)
    print(json.dumps(refused()))
    """
    )
    for _ in range(5):
        assert run_python(child_cgroup(LIMIT), program) is True
