"""What the guard leaves to the server that it refuses to the app, and that this too ends before the kernel's kill."""

import pytest
from machine import MIB
from programs import MakeCgroup, preloaded, run_python
from test_guard_limits import ALLOCATORS, CALLS

PLACES = """
    from resource_monitor.guard import IN_APP, IN_SERVER, place

    def granted(where, size):
        place()[0] = where
        try:
            bytearray(size)
        except MemoryError:
            return False
        finally:
            place()[0] = IN_APP
        return True

    def fill(size):
        held = []
        try:
            while True:
                held.append(bytearray(b"x") * size)
        except MemoryError:
            return held
"""
BLOCK = 3 * MIB // 2
"""A server's buffer: gunicorn 27 asks for 1 MiB of a body at a time."""
LIMIT = 128 * MIB


def test_the_server_gets_its_buffers_where_the_app_gets_no_large_block(child_cgroup: MakeCgroup) -> None:
    program = (
        CALLS
        + PLACES
        + """
    held = fill(300_000)
    sizes = map(int, sys.argv[1:])
    print(json.dumps([[granted(IN_APP, size), granted(IN_SERVER, size)] for size in sizes]))
    """
    )
    found = run_python(child_cgroup(LIMIT), program, BLOCK, 5 * MIB // 2)
    assert found == [[False, True], [False, False]]


def test_threads_that_run_no_request_go_on_where_the_app_gets_no_small_step(child_cgroup: MakeCgroup) -> None:
    """One of them tells uvicorn's supervisor that the worker lives, which is killed when that thread dies."""
    program = (
        CALLS
        + PLACES
        + """
    place()[0] = IN_APP
    held = fill(300_000), fill(10_000)
    more, elsewhere = fill(10_000), []
    thread = threading.Thread(target=lambda: elsewhere.extend(bytearray(b"x") * 10_000 for _ in range(100)))
    thread.start()
    thread.join()
    print(json.dumps([len(more), len(elsewhere)]))
    """
    )
    here, elsewhere = run_python(child_cgroup(LIMIT), program)
    assert here < 50  # what a refusal leaves for who deals with it
    assert elsewhere == 100


def test_the_servers_buffers_leave_room_for_small_steps_of_both(child_cgroup: MakeCgroup) -> None:
    """An interpreter that is refused a tiny block may end there and then."""
    program = (
        CALLS
        + PLACES
        + """
    place()[0] = IN_SERVER
    held = fill(int(sys.argv[1])), fill(300_000)
    steps = [bytearray(b"x") * 10_000 for _ in range(100)]
    tiny = [0] * 100
    place()[0] = IN_APP
    for n in range(100):
        tiny[n] = python.PyMem_RawMalloc(500)
    place()[0] = IN_SERVER
    print(json.dumps([guard.statistics().refusals, tiny.count(None)]))
    """
    )
    assert run_python(child_cgroup(LIMIT), program, BLOCK) == [2, 0]


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_the_servers_buffers_do_not_grow_into_the_last_of_the_memory(child_cgroup: MakeCgroup, allocator: str) -> None:
    """Above a debug hook growth cannot be told from shrinking, so that what is not large passes unseen there."""
    library, env = ALLOCATORS[allocator]
    program = (
        CALLS
        + PLACES
        + """
    place()[0] = IN_SERVER
    blocks = [python.PyMem_RawMalloc(1) for _ in range(8)]
    held = fill(100_000)
    held.pop()
    print(json.dumps([python.PyMem_RawRealloc(block, int(sys.argv[1])) for block in blocks]))
    """
    )
    cgroup = child_cgroup(LIMIT)
    found = run_python(cgroup, program, BLOCK, env=preloaded(library, **env) if library else env)
    assert found == [None] * 8


@pytest.mark.parametrize("allocator", [name for name in ALLOCATORS if "debug" not in name])
@pytest.mark.parametrize("call", ["Malloc(size)", "Calloc(1, size)"])
def test_threads_that_race_in_the_servers_place_get_no_more_than_there_is(
    child_cgroup: MakeCgroup, allocator: str, call: str
) -> None:
    """Each block is filled only once all threads were refused, as those are that wait for slow clients. Above a debug
    hook blocks cannot be charged, so that untouched ones are given the same room there, whatever their size."""
    library, env = ALLOCATORS[allocator]
    program = (
        CALLS
        + PLACES
        + """
    size, taken = int(sys.argv[1]), []
    start, end = threading.Barrier(16), threading.Barrier(16)

    def take():
        place()[0] = IN_SERVER
        start.wait()
        while block := python.PyMem_RawCALL:
            taken.append(block)
            if len(taken) > 1000:
                break
        end.wait()
        place()[0] = IN_APP

    threads = [threading.Thread(target=take) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for block in taken:
        python.memset(block, 1, size)
    print(json.dumps([len(taken), guard.statistics().refusals]))
    """.replace("CALL", call)
    )
    cgroup = child_cgroup(LIMIT)
    taken, refused = run_python(cgroup, program, BLOCK, env=preloaded(library, **env) if library else env)
    assert refused == 16
    assert LIMIT / 2 < taken * BLOCK < LIMIT
