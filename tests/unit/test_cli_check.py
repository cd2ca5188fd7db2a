import json

import pytest
from commands import run_command
from machine import GIB, MIB, V1_UNLIMITED, Machine

from resource_monitor import guard
from resource_monitor.allocator import Allocator
from resource_monitor.cli import diagnosis, preload
from resource_monitor.cli.check import Check
from resource_monitor.cli.diagnosis import Finding, Status, diagnose

JEMALLOC = Allocator("jemalloc", "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2")
GLIBC = Allocator("glibc", "/lib/x86_64-linux-gnu/libc.so.6")
MUSL = Allocator("unknown", "/lib/ld-musl-x86_64.so.1")


@pytest.fixture(autouse=True)
def _jemalloc_with_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator is as told, whatever serves the tests."""
    monkeypatch.setattr(diagnosis, "allocator_stats_enabled", lambda: True)


def find(
    machine: Machine,
    topic: str,
    environment: dict[str, str] | None = None,
    *,
    declared: int | None = None,
    allocator: Allocator = JEMALLOC,
) -> Finding:
    """The last of the findings about ``topic``."""
    findings = diagnose(diagnosis.Machine(str(machine), environment or {}, declared, allocator))
    return [finding for finding in findings if finding.topic == topic][-1]


@pytest.fixture
def no_jemalloc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preload, "_candidates", lambda environment: iter(()))


def test_a_limited_container_with_jemalloc_is_in_order(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.container()
    assert run_command(Check(str(machine))) == 0
    assert "problem" not in capsys.readouterr().out


def test_names_the_version_the_path_and_the_levels(machine: Machine) -> None:
    machine.v2("/a/b")
    machine.v2_level("/sys/fs/cgroup/a/b", limit=256 * MIB, usage=0)
    machine.v2_level("/sys/fs/cgroup/a", usage=0)
    assert find(machine, "cgroup") == Finding(Status.OK, "cgroup", "v2, /sys/fs/cgroup/a/b, 2 levels visible.")


def test_no_limit_below_the_machine_is_a_problem(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.container(limit=None)
    assert run_command(Check(str(machine))) == 1
    assert find(machine, "limit").status is Status.PROBLEM
    assert "RESOURCE_MONITOR_LIMIT" in find(machine, "limit").remedy


def test_one_as_large_as_the_machine_is_none(machine: Machine) -> None:
    machine.memory(total=2 * GIB, available=GIB)
    machine.container(limit=4 * GIB)
    assert find(machine, "limit").status is Status.PROBLEM


def test_a_declared_limit_is_enough(machine: Machine) -> None:
    machine.resident(50 * MIB)
    finding = find(machine, "limit", declared=128 * MIB)
    assert finding.status is Status.OK
    assert finding.text == "declared limit of 128.0 MiB (resident memory), 78.0 MiB left."
    assert find(machine, "cgroup").text == "no memory cgroup holds this process."


def test_memory_high_alone_refuses_nobody(machine: Machine) -> None:
    machine.container(limit=None)
    machine.write("/sys/fs/cgroup/memory.high", f"{100 * MIB}\n")
    assert find(machine, "limit").status is Status.PROBLEM
    assert find(machine, "memory.high").status is Status.NOTE


def test_files_that_cannot_be_read_are_a_problem(machine: Machine) -> None:
    machine.container()
    machine.make_unreadable("/sys/fs/cgroup/memory.max")
    findings = diagnose(diagnosis.Machine(str(machine), {}, None, JEMALLOC))
    assert (
        Finding(
            Status.PROBLEM,
            "limit",
            "cgroup v2 (/sys/fs/cgroup/memory.max) cannot be read, so that nothing is known of it.",
            "make its files readable for this user.",
        )
        in findings
    )


def test_so_is_a_proc_that_makes_no_sense(machine: Machine) -> None:
    machine.container()
    machine.write("/proc/self/cgroup", "nonsense\n")
    finding = find(machine, "memory")
    assert finding.status is Status.PROBLEM
    assert "/proc/self/cgroup" in finding.text


def test_a_place_that_cannot_be_settled_is_noted(machine: Machine) -> None:
    machine.v1("/../other", mount="/sys/fs/cgroup/memory")
    machine.v1_level("/sys/fs/cgroup/memory", limit=256 * MIB, usage=0)
    assert "cannot be settled" in find(machine, "cgroup").text


def test_a_hidden_limit_is_noted(machine: Machine) -> None:
    machine.v1("/")
    machine.v1_level(
        "/sys/fs/cgroup/memory", limit=V1_UNLIMITED, usage=0, stat={"hierarchical_memory_limit": 128 * MIB}
    )
    assert "cannot be seen from here" in find(machine, "limit").text


@pytest.mark.parametrize(
    ("files", "status"),
    [({}, Status.NOTE), ({"memory.swap.max": "max"}, Status.NOTE), ({"memory.swap.max": "0"}, Status.OK)],
)
def test_swap_in_the_cgroup_is_noted_where_the_machine_has_any(
    machine: Machine, files: dict[str, str], status: Status
) -> None:
    machine.container()
    assert find(machine, "swap").text == "the machine has none."
    with machine.path("/proc/meminfo").open("a") as meminfo:
        meminfo.write("SwapTotal:   1000000 kB\n")
    for name, text in files.items():
        machine.write(f"/sys/fs/cgroup/{name}", text + "\n")
    assert find(machine, "swap").status is status


@pytest.mark.parametrize(("both", "status"), [(256 * MIB, Status.OK), (512 * MIB, Status.NOTE), (None, Status.NOTE)])
def test_under_v1_the_limit_on_both_says_whether_there_may_be_swap(
    machine: Machine, both: int | None, status: Status
) -> None:
    machine.write("/proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\nSwapTotal: 1000000 kB\n")
    machine.v1("/app")
    machine.v1_level("/sys/fs/cgroup/memory/app", limit=256 * MIB, usage=0)
    if both is not None:
        machine.write("/sys/fs/cgroup/memory/app/memory.memsw.limit_in_bytes", f"{both}\n")
    assert find(machine, "swap").status is status


def test_under_v1_two_limits_that_are_none_do_not_forbid_swap(machine: Machine) -> None:
    machine.write("/proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\nSwapTotal: 1000000 kB\n")
    machine.v1("/app")
    machine.v1_level("/sys/fs/cgroup/memory/app", limit=V1_UNLIMITED, usage=0)
    machine.write("/sys/fs/cgroup/memory/app/memory.memsw.limit_in_bytes", f"{V1_UNLIMITED}\n")
    assert find(machine, "swap").status is Status.NOTE


@pytest.mark.parametrize(("mode", "status"), [("0", Status.OK), ("1", Status.OK), ("2", Status.NOTE)])
def test_overcommit_that_refuses_is_noted(machine: Machine, mode: str, status: Status) -> None:
    machine.write("/proc/sys/vm/overcommit_memory", mode + "\n")
    assert find(machine, "overcommit").status is status


def test_without_jemalloc_says_how_to_get_it(machine: Machine, no_jemalloc: None) -> None:
    finding = find(machine, "allocator", allocator=GLIBC)
    assert finding.status is Status.NOTE
    assert finding.remedy.startswith("install jemalloc")


def test_a_jemalloc_that_was_asked_for_and_not_loaded_is_named(machine: Machine) -> None:
    finding = find(machine, "allocator", {"LD_PRELOAD": "/opt/libjemalloc.so.2"}, allocator=GLIBC)
    assert "LD_PRELOAD names /opt/libjemalloc.so.2" in finding.remedy


def test_musl_is_advised_another_image(machine: Machine, no_jemalloc: None) -> None:
    finding = find(machine, "allocator", allocator=MUSL)
    assert "musl's malloc gives nothing back" in finding.text
    assert "image with glibc" in finding.remedy


def test_a_jemalloc_without_statistics_is_noted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "allocator_stats_enabled", lambda: False)
    assert "without statistics" in find(machine, "allocator").text


@pytest.mark.parametrize(
    ("value", "status"),
    [(None, Status.OK), ("pymalloc", Status.OK), ("malloc", Status.OK), ("malloc_debug", Status.NOTE)],
)
def test_debugging_allocators_of_python_are_noted(machine: Machine, value: str | None, status: Status) -> None:
    assert find(machine, "PYTHONMALLOC", {"PYTHONMALLOC": value} if value else {}).status is status


@pytest.mark.parametrize(
    ("modes", "allocator", "settings", "status"),
    [
        ("[always] madvise never", JEMALLOC, "", Status.NOTE),
        ("[always] madvise never", JEMALLOC, "narenas:2,thp:never", Status.OK),
        ("[always] madvise never", GLIBC, "", Status.OK),
        ("always [madvise] never", JEMALLOC, "", Status.OK),
    ],
)
def test_huge_pages_under_jemalloc_are_noted(
    machine: Machine, no_jemalloc: None, modes: str, allocator: Allocator, settings: str, status: Status
) -> None:
    machine.write("/sys/kernel/mm/transparent_hugepage/enabled", modes + "\n")
    assert find(machine, "huge pages", {"MALLOC_CONF": settings}, allocator=allocator).status is status


def test_an_interpreter_that_cannot_be_guarded_is_noted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(machine, "guard").status is Status.OK
    monkeypatch.setattr(guard, "unsupported", lambda: "A free-threaded interpreter cannot be guarded; use another.")
    finding = find(machine, "guard")
    assert finding.status is Status.NOTE
    assert finding.text == ("A free-threaded interpreter cannot be guarded: requests are refused, allocations are not.")


@pytest.mark.parametrize(
    ("first", "status"),
    [("/usr/local/bin/python3.13\0/usr/local/bin/uvicorn\0app:app", Status.NOTE), ("/sbin/tini\0--", Status.OK)],
)
def test_a_server_that_is_process_1_of_its_container_needs_a_restart_policy(
    machine: Machine, first: str, status: Status
) -> None:
    machine.write("/.dockerenv", "")
    machine.write("/proc/1/cmdline", first)
    assert find(machine, "restart").status is status


def test_kubernetes_restarts_by_itself(machine: Machine) -> None:
    assert "kubelet" in find(machine, "restart", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}).text


def test_outside_of_a_container_the_service_manager_restarts(machine: Machine) -> None:
    assert "no container" in find(machine, "restart").text


def test_json_has_the_verdict_and_every_finding(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.container(limit=None)
    assert run_command(Check(str(machine)), "--json") == 1
    checked = json.loads(capsys.readouterr().out)
    assert checked["works"] is False
    assert {"status": "problem", "topic": "limit"}.items() <= checked["findings"][1].items()


@pytest.mark.parametrize("columns", [80, 120])
def test_no_line_is_wider_than_the_terminal(
    machine: Machine, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    machine.v2("/" + "x" * 200)
    machine.v2_level("/sys/fs/cgroup/" + "x" * 200, limit=256 * MIB, usage=0)
    run_command(Check(str(machine)))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= columns
