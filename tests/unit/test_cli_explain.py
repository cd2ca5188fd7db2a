import json
import os

import pytest
from commands import run_command
from machine import GIB, MIB, Machine

from resource_monitor.cli.command import CommandError
from resource_monitor.cli.explain import Explain

SCOPE = "/kubepods.slice/kubepods-burstable.slice/" + "cri-containerd-" + "0123456789abcdef" * 4


@pytest.fixture
def nested(machine: Machine) -> Machine:
    """A v2 cgroup with a long name and memory.high, below a smaller one that a sibling has filled."""
    machine.v2(SCOPE)
    machine.v2_level("/sys/fs/cgroup" + SCOPE, limit=512 * MIB, usage=100 * MIB, stat={"inactive_file": 20 * MIB})
    machine.write("/sys/fs/cgroup" + SCOPE + "/memory.high", f"{256 * MIB}\n")
    machine.v2_level("/sys/fs/cgroup/kubepods.slice", limit=400 * MIB, usage=390 * MIB)
    return machine


def rows(output: str) -> list[str]:
    """The limits that bite, with single spaces."""
    return [
        " ".join(line.split()) for line in output.splitlines() if line.endswith(("kill", "throttle", "MemoryError"))
    ]


def test_marks_the_limit_with_the_least_headroom_not_the_least_limit(
    nested: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(Explain(str(nested))) == 0
    first, second, *_ = rows(capsys.readouterr().out)
    assert first == "▶ cgroup v2 400.0 MiB 390.0 MiB 10.0 MiB 10.0 MiB kill"
    assert second == "cgroup v2 high 256.0 MiB 100.0 MiB 176.0 MiB 176.0 MiB throttle"


@pytest.mark.parametrize("columns", [80, 100, 132, 200])
def test_no_line_is_wider_than_the_terminal(
    nested: Machine, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    run_command(Explain(str(nested)))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= columns


def test_a_wide_terminal_has_the_whole_path_beside_the_figures(
    nested: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    run_command(Explain(str(nested)))
    output = capsys.readouterr().out
    assert [line for line in output.splitlines() if "176.0 MiB" in line and f"{SCOPE}/memory.high" in line]


def test_a_narrow_terminal_has_the_shortened_path_below(nested: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    run_command(Explain(str(nested)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "   /sys/fs/cgroup/kubepods.slice/memory.max"
    assert lines[4].startswith("   /sys/fs/cgroup/kube")
    assert lines[4].endswith("/memory.high")


def test_the_sentence_says_what_happens_then(nested: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    run_command(Explain(str(nested)))
    sentence = " ".join(capsys.readouterr().out.split())
    assert "bites first, after 10.0 MiB more: then the kernel kills a process" in sentence


def test_limits_that_limit_nothing_are_listed_below(nested: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    nested.v2_level("/sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice", usage=390 * MIB)
    run_command(Explain(str(nested)))
    output = " ".join(capsys.readouterr().out.split())
    assert "No limit: commit limit, address space, data segment, cgroup v2 high (2 levels), cgroup v2." in output


def test_a_limit_that_cannot_be_read_is_named(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.container()
    machine.make_unreadable("/sys/fs/cgroup/memory.max")
    run_command(Explain(str(machine)))
    output = " ".join(capsys.readouterr().out.split())
    assert "Unreadable, so that nothing is known of it: cgroup v2 (/sys/fs/cgroup/memory.max)." in output


def test_a_hidden_ancestor_is_said_to_be_one(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.v1("/app")
    machine.v1_level("/sys/fs/cgroup/memory/app", usage=10 * MIB, stat={"hierarchical_memory_limit": 128 * MIB})
    machine.v1_level("/sys/fs/cgroup/memory", usage=10 * MIB, stat={"hierarchical_memory_limit": 128 * MIB})
    run_command(Explain(str(machine)))
    output = " ".join(capsys.readouterr().out.split())
    assert "is set above every cgroup that can be seen from here" in output


def test_page_cache_makes_the_headroom_wider_than_its_pessimistic_bound(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.container(usage=200 * MIB, inactive_file=30 * MIB, active_file=50 * MIB)
    run_command(Explain(str(machine)))
    assert rows(capsys.readouterr().out)[0] == "▶ cgroup v2 256.0 MiB 200.0 MiB 136.0 MiB 86.0 MiB kill"


def test_a_declared_limit_counts(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.resident(50 * MIB)
    run_command(Explain(str(machine)), "--limit", "64MiB")
    assert "▶  declared limit" in capsys.readouterr().out


def test_so_does_one_in_the_environment(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.resident(50 * MIB)
    monkeypatch.setenv("RESOURCE_MONITOR_LIMIT", "64MiB")
    run_command(Explain(str(machine)))
    assert "▶  declared limit" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["lots", "0"])
def test_a_bad_limit_in_the_environment_is_called_by_its_name(
    machine: Machine, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESOURCE_MONITOR_LIMIT", text)
    with pytest.raises(CommandError, match=f"^RESOURCE_MONITOR_LIMIT: '{text}' ") as raised:
        run_command(Explain(str(machine)))
    assert raised.value.exit_code == 2


def test_json_has_every_limit_in_bytes(nested: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(Explain(str(nested)), "--json") == 0
    explained = json.loads(capsys.readouterr().out)
    first = explained["limits"][explained["first"]]
    assert first == {
        "kind": "cgroup v2",
        "where": "/sys/fs/cgroup/kubepods.slice/memory.max",
        "value": 400 * MIB,
        "used": 390 * MIB,
        "reclaimable": 0,
        "headroom": 10 * MIB,
        "headroom_low": 10 * MIB,
        "consequence": "kill",
        "flags": [],
    }
    assert (explained["limits"][-1]["value"], explained["limits"][-1]["headroom"]) == (None, None)
    assert explained["allocator"]["name"] == "glibc"


def test_of_another_process_the_allocator_is_not_known(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    pid = os.getpid()
    machine.write(f"/proc/{pid}/cgroup", "0::/\n")
    machine.write(f"/proc/{pid}/stat", f"{pid} (a) b) S " + "1 " * 20)
    run_command(Explain(str(machine)), "--pid", str(pid))
    output = " ".join(capsys.readouterr().out.split())
    assert f"What the allocator of process {pid} would give back cannot be read from outside." in output
    run_command(Explain(str(machine)), "--pid", str(pid), "--json")
    assert json.loads(capsys.readouterr().out)["allocator"] is None


def test_a_process_that_is_not_there_is_bad_input(machine: Machine) -> None:
    with pytest.raises(CommandError, match="there is no process 4242; ps lists those there are") as raised:
        run_command(Explain(str(machine)), "--pid", "4242")
    assert raised.value.exit_code == 2


def test_the_host_alone_is_a_limit_too(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.memory(total=8 * GIB, available=6 * GIB)
    run_command(Explain(str(machine)))
    assert rows(capsys.readouterr().out)[0] == "▶ host memory 8.0 GiB 2.0 GiB 6.0 GiB 6.0 GiB kill"


def test_says_so_when_nothing_limits(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.path("/proc/meminfo").unlink()
    run_command(Explain(str(machine)))
    assert "Nothing limits the memory of this process." in capsys.readouterr().out
