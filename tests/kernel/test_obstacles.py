"""Machines on which something is out of reach, and users whom the kernel does not exempt: real mounts, real users."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from child_cgroup import ChildCgroup
from machine import MIB
from programs import TIMEOUT, MakeCgroup, environment, run_python

# One that nobody has: what its tasks are allowed is not shared with anyone.
STRANGER = 54321

# Prints the headroom (None: unbounded), each memory limit's value, flags and headroom, and what a gate decided.
REPORT = """
import json, os, sys
from resource_monitor import UNBOUNDED, MemoryMonitor, ProbeError
from resource_monitor.middleware.gate import Gate

if len(sys.argv) > 1:
    os.setresuid(*[int(sys.argv[1])] * 3)
found = {}
try:
    monitor = MemoryMonitor()
    headroom = monitor.headroom()
    found["headroom"] = None if headroom == UNBOUNDED else headroom
    found["limits"] = [[limit.kind, limit.value, sorted(limit.flags)] for limit in monitor.limits()]
except ProbeError as error:
    found["problem"] = str(error)
for policy in ("admit", "refuse"):
    found[policy] = Gate(on_probe_error=policy, allocation_guard=False).enter("GET", "/") is not None
print(json.dumps(found))
"""


def report(cgroup: ChildCgroup, mounts: str, *arguments: object) -> Any:
    """Run REPORT inside ``cgroup``, in a mount namespace of its own in which the shell commands ``mounts`` were run."""
    script = f'set -e; mount --make-rprivate /; {mounts}; exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", REPORT, *arguments]
    done = cgroup.run(argv, env=environment(None), timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_without_a_view_of_the_cgroups_the_machine_is_all_that_is_known(child_cgroup: MakeCgroup) -> None:
    """The kernel still says where this process belongs, but not a level of it can be seen: flagged, and no error."""
    found = report(child_cgroup(128 * MIB), "mount -t tmpfs none /sys/fs/cgroup")
    limits = {kind: (value, flags) for kind, value, flags in found["limits"]}
    assert limits["host memory"][0] is not None
    cgroups = [limit for kind, limit in limits.items() if kind.startswith("cgroup")]
    assert all(value is None and "uncertain" in flags for value, flags in cgroups)
    assert (found["admit"], found["refuse"]) == (True, True)


def test_without_proc_nothing_limits(child_cgroup: MakeCgroup) -> None:
    found = report(child_cgroup(128 * MIB), "mount -t tmpfs none /proc")
    assert found["headroom"] is None
    assert {(value, *flags) for _, value, flags in found["limits"]} == {(None,)}
    assert (found["admit"], found["refuse"]) == (True, True)


def test_where_everything_is_unreadable_the_policy_decides(child_cgroup: MakeCgroup, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch(mode=0)
    mounts = f"mount --bind {secret} /proc/meminfo; mount -t tmpfs none /sys/fs/cgroup"
    found = report(child_cgroup(128 * MIB), mounts, STRANGER)
    assert found == {
        "problem": "/proc/meminfo: cannot be read: Permission denied",
        "admit": True,
        "refuse": False,
    }


def test_a_limit_that_this_user_may_not_read_is_left_out_and_flagged(child_cgroup: MakeCgroup) -> None:
    cgroup = child_cgroup(128 * MIB)
    for name in ("memory.max", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
        if (cgroup.path / name).exists():
            (cgroup.path / name).chmod(0)
    found = report(cgroup, "true", STRANGER)
    own = next(flags for kind, _, flags in found["limits"] if kind == f"cgroup v{cgroup.version}")
    assert own == ["unreadable"]
    assert found["headroom"] > 128 * MIB
    assert (found["admit"], found["refuse"]) == (True, True)


def as_stranger(program: str) -> Any:
    """Run ``program`` as a user whom no capability exempts, with Python's own modules read before."""
    done = subprocess.run(
        [sys.executable, "-c", STRANGE + program],
        check=False,
        env=environment(None),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


STRANGE = f"""
import json, os, resource, threading
from resource_monitor import Resource
resource.setrlimit(resource.RLIMIT_NPROC, (12, 12))
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
os.setresgid(*[{STRANGER}] * 3)
os.setresuid(*[{STRANGER}] * 3)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_as_many_tasks_as_available_can_be_started_and_no_more() -> None:
    limit, used, available, started = as_stranger("""
figures = [Resource.TASKS.limit(), Resource.TASKS.used(), Resource.TASKS.available()]
end, started = threading.Event(), 0
try:
    while started < 50:
        threading.Thread(target=end.wait).start()
        started += 1
except RuntimeError:
    pass
end.set()
print(json.dumps([*figures, started]))
""")
    assert (limit, used) == (12, 1)
    assert started == available == 11


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_as_many_descriptors_as_available_can_be_opened_and_no_more() -> None:
    limit, available, opened = as_stranger("""
figures = [Resource.OPEN_FILES.limit(), Resource.OPEN_FILES.available()]
opened = 0
try:
    while opened < 100:
        os.dup(0)
        opened += 1
except OSError:
    pass
print(json.dumps([*figures, opened]))
""")
    assert limit == 40
    assert opened == available


def test_root_is_exempt_from_the_limit_on_a_users_tasks(child_cgroup: MakeCgroup) -> None:
    program = """
        import json, resource
        from resource_monitor import counts
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        print(json.dumps([limit.kind for limit in counts.tasks().limits()]))
    """
    assert "tasks of the user" not in run_python(child_cgroup(128 * MIB), program)
