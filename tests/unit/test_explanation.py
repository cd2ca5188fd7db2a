import pytest
from machine import GIB, MIB, Machine

from resource_monitor import Consequence, Flag, ProbeError, explain


def explain_on(machine: Machine, **options: int) -> tuple[list[str], str | None, str]:
    """The order of the kinds, which is first, and the sentence."""
    found = explain(root=str(machine), **options)
    return [limit.kind for limit in found.limits], found.first and found.first.kind, found.sentence


def test_limits_are_told_in_the_order_in_which_they_bite(machine: Machine) -> None:
    machine.container(limit=256 * MIB, usage=100 * MIB)
    machine.rlimits(address_space=8 * GIB)
    machine.statm(size=8 * GIB - 10 * MIB, resident=40 * MIB)
    order, first, sentence = explain_on(machine, declared=64 * MIB)
    assert order == [
        "address space",
        "declared limit",
        "cgroup v2",
        "host memory",
        "commit limit",
        "data segment",
        "cgroup v2 high",
    ]
    assert first == "address space"
    assert sentence == (
        "address space (RLIMIT_AS) bites first, after 10.0 MiB more: then allocations fail with MemoryError; declared "
        "limit (resident memory) kills after 24.0 MiB."
    )


def test_a_limit_that_kills_first_comes_without_warning(machine: Machine) -> None:
    machine.container(limit=256 * MIB, usage=100 * MIB)
    _, first, sentence = explain_on(machine)
    assert first == "cgroup v2"
    assert sentence == (
        "cgroup v2 (/sys/fs/cgroup/memory.max) bites first, after 156.0 MiB more: then the kernel kills a process; no "
        "limit gives a warning before."
    )


def test_a_limit_that_throttles_is_told_first_and_the_one_that_kills_after_it(machine: Machine) -> None:
    machine.container(limit=256 * MIB, usage=100 * MIB)
    machine.write("/sys/fs/cgroup/memory.high", f"{120 * MIB}\n")
    order, first, sentence = explain_on(machine)
    assert order[:2] == ["cgroup v2 high", "cgroup v2"]
    assert first == "cgroup v2 high"
    assert sentence == (
        "cgroup v2 high (/sys/fs/cgroup/memory.high) bites first, after 20.0 MiB more: then the kernel makes "
        "allocations wait while it reclaims, so that the process may seem frozen; cgroup v2 "
        "(/sys/fs/cgroup/memory.max) kills after 156.0 MiB."
    )


def test_a_soft_failure_that_no_kill_follows(machine: Machine) -> None:
    machine.path("/proc/meminfo").unlink()
    machine.rlimits(data_size=64 * MIB)
    machine.statm(data=60 * MIB)
    assert explain_on(machine)[1:] == (
        "data segment",
        "data segment (RLIMIT_DATA) bites first, after 4.0 MiB more: then allocations fail with MemoryError; nothing "
        "kills it.",
    )


def test_nothing_limits(machine: Machine) -> None:
    machine.path("/proc/meminfo").unlink()
    assert explain_on(machine)[1:] == (None, "Nothing limits the memory of this process.")


def test_a_limit_that_is_used_up_is_told_as_such_before_those_that_are_not(machine: Machine) -> None:
    machine.container(limit=256 * MIB, usage=300 * MIB)
    order, first, sentence = explain_on(machine)
    assert order[0] == first == "cgroup v2"
    assert "after 0 B more" in sentence


def test_of_two_limits_at_the_same_distance_the_one_that_fails_softly_is_met_first(machine: Machine) -> None:
    machine.container(limit=256 * MIB, usage=100 * MIB)
    machine.write("/sys/fs/cgroup/memory.high", f"{256 * MIB}\n")
    machine.rlimits(data_size=176 * MIB)
    machine.statm(data=20 * MIB)
    assert explain_on(machine)[0][:3] == ["data segment", "cgroup v2 high", "cgroup v2"]


def test_what_cannot_be_read_is_told_last(machine: Machine) -> None:
    machine.container(limit=256 * MIB, usage=100 * MIB)
    machine.make_unreadable("/sys/fs/cgroup/memory.max")
    found = explain(root=str(machine))
    assert found.limits[-1].kind == "cgroup v2"
    assert found.limits[-1].flags == {Flag.UNREADABLE}
    assert found.first is not None
    assert found.first.kind == "host memory"


def test_another_process_is_explained_by_its_pid(machine: Machine) -> None:
    machine.write("/proc/77/cgroup", "0::/seven\n")
    machine.write("/proc/self/mountinfo", "1 0 0:1 / /m rw - cgroup2 none rw\n")
    machine.v2_level("/m/seven", limit=64 * MIB, usage=60 * MIB)
    first = explain(77, root=str(machine)).first
    assert first is not None
    assert (first.where, first.headroom, first.consequence) == ("/m/seven/memory.max", 4 * MIB, Consequence.KILL)


def test_a_process_that_is_not_there_is_an_error_that_names_the_path(machine: Machine) -> None:
    with pytest.raises(ProbeError, match=r"^/proc/78/cgroup: there is no such process$"):
        explain(78, root=str(machine))


def test_the_real_machine_is_explained() -> None:
    found = explain()
    assert found.sentence.endswith(".")
    assert found.first is None or found.first in found.limits
