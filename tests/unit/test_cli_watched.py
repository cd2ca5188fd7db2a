import pytest
from machine import MIB, Machine

from resource_monitor.cli.watched import Watched
from resource_monitor.errors import ProbeError

PID = 4242


@pytest.fixture
def process(machine: Machine) -> Machine:
    machine.container()
    machine.write(f"/proc/{PID}/cgroup", "0::/\n")
    machine.write(f"/proc/{PID}/mountinfo", machine.path("/proc/self/mountinfo").read_text())
    machine.write(f"/proc/{PID}/comm", "web\x1b[2J\n")
    start(machine, at=100)
    return machine


def start(machine: Machine, *, at: int, state: str = "S") -> None:
    """As proc_pid_stat(5), with a name that does its worst."""
    machine.write(f"/proc/{PID}/stat", f"{PID} (a) Z 1) {state} {'0 ' * 18}{at} 0 0\n")


def watch(machine: Machine) -> Watched:
    return Watched(PID, None, str(machine))


def test_samples_the_limits_of_the_process(process: Machine) -> None:
    sample = watch(process).sample()
    assert sample is not None
    assert sample.explanation.first is not None
    assert sample.explanation.first.value == 256 * MIB


def test_another_process_with_its_number_is_not_it(process: Machine) -> None:
    watched = watch(process)
    start(process, at=200)
    assert watched.sample() is None


def test_a_zombie_has_ended(process: Machine) -> None:
    watched = watch(process)
    start(process, at=100, state="Z")
    assert watched.sample() is None


def test_a_reading_that_fails_while_it_lives_is_an_error(process: Machine) -> None:
    watched = watch(process)
    process.write(f"/proc/{PID}/cgroup", "nonsense\n")
    with pytest.raises(ProbeError, match="nonsense"):
        watched.sample()


def test_its_name_cannot_move_the_cursor(process: Machine) -> None:
    assert watch(process).name == f"process {PID} (web\\x1b[2J)"


def test_kills_are_counted_from_the_beginning_of_the_watch(process: Machine) -> None:
    events = "/sys/fs/cgroup/memory.events"
    process.write(events, "low 0\nhigh 0\nmax 9\noom 3\noom_kill 3\noom_group_kill 0\n")
    watched = watch(process)
    assert watched.kills() == 0
    process.write(events, "low 0\nhigh 0\nmax 9\noom 5\noom_kill 5\noom_group_kill 0\n")
    assert watched.kills() == 2


def test_kills_stay_known_when_the_cgroup_is_gone(process: Machine) -> None:
    events = process.write("/sys/fs/cgroup/memory.events", "oom_kill 3\n")
    watched = watch(process)
    events.write_text("oom_kill 4\n")
    assert watched.kills() == 1
    events.unlink()
    assert watched.kills() == 1


def test_without_the_file_there_are_no_kills(process: Machine) -> None:
    assert watch(process).kills() == 0
