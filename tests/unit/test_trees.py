"""Whole machines as they are found in the wild: which limit bites first on each, and after how many bytes."""

import os
from textwrap import dedent

from machine import GIB, MIB, V1_UNLIMITED, Machine

from resource_monitor.limits import FULL, Limit, memory_limits
from resource_monitor.sources import Flag

UNLIMITED_HIERARCHY = {"hierarchical_memory_limit": V1_UNLIMITED}
POD = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1a2b_3c4d.slice"
CONTAINER = f"{POD}/cri-containerd-0f1e2d.scope"

# What surrounds the cgroup mounts on a usual machine.
ELSEWHERE = """
22 28 0:20 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
23 28 0:21 / /sys rw,nosuid,nodev,noexec,relatime shared:2 - sysfs sysfs rw
28 0 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,discard,errors=remount-ro
"""
V1_MOUNTS = """
30 23 0:25 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:4 - tmpfs tmpfs ro,mode=755
31 30 0:26 / /sys/fs/cgroup/systemd rw,nosuid,nodev,noexec,relatime shared:5 - cgroup cgroup rw,xattr,name=systemd
32 30 0:29 / /sys/fs/cgroup/pids rw,nosuid,nodev,noexec,relatime shared:8 - cgroup cgroup rw,pids
33 30 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,nodev,noexec,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
34 30 0:31 / /sys/fs/cgroup/memory rw,nosuid,nodev,noexec,relatime shared:10 - cgroup cgroup rw,memory
"""
V2_MOUNT = """
30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,memory_recursiveprot
"""


def live(machine: Machine, memberships: str, *mounts: str) -> None:
    machine.process(dedent(memberships).lstrip(), (ELSEWHERE + "".join(mounts)).replace("\n\n", "\n").lstrip())


def first(machine: Machine) -> tuple[str, int]:
    """Where the limit stands that bites first, and its headroom in MiB."""
    limit = first_limit(machine)
    assert limit.headroom is not None
    return limit.where, limit.headroom // MIB


def first_limit(machine: Machine) -> Limit:
    reader = memory_limits(root=str(machine))
    assert reader.read(FULL)
    assert reader.failure() is None
    limit = reader.first()
    assert limit is not None
    return limit


# --- v1 ---


def test_v1_with_every_controller_in_a_mount_of_its_own(machine: Machine) -> None:
    live(
        machine,
        """\
        12:cpu,cpuacct:/system.slice/web.service
        7:pids:/system.slice/web.service
        4:memory:/system.slice/web.service
        1:name=systemd:/system.slice/web.service
        0::/system.slice/web.service
        """,
        V1_MOUNTS,
    )
    top = "/sys/fs/cgroup/memory"
    machine.v1_level(top, usage=3 * GIB, stat=UNLIMITED_HIERARCHY)
    machine.v1_level(f"{top}/system.slice", limit=600 * MIB, usage=580 * MIB, stat={"total_inactive_file": 10 * MIB})
    machine.v1_level(f"{top}/system.slice/web.service", limit=512 * MIB, usage=100 * MIB)
    assert first(machine) == (f"{top}/system.slice/memory.limit_in_bytes", 30)


def test_v1_with_memory_joined_to_another_controller(machine: Machine) -> None:
    live(
        machine,
        "3:cpuset:/other\n2:cpu,memory:/jobs/7\n",
        "34 30 0:31 / /cgroup/cpu,memory rw,relatime - cgroup cgroup rw,cpu,memory\n",
        "35 30 0:32 / /cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n",
    )
    machine.v1_level("/cgroup/cpu,memory", usage=1 * GIB, stat=UNLIMITED_HIERARCHY)
    machine.v1_level("/cgroup/cpu,memory/jobs", usage=1 * GIB)
    machine.v1_level("/cgroup/cpu,memory/jobs/7", limit=256 * MIB, usage=200 * MIB)
    machine.v1_level("/cgroup/cpu,memory/other", limit=64 * MIB, usage=63 * MIB)
    assert first(machine) == ("/cgroup/cpu,memory/jobs/7/memory.limit_in_bytes", 56)


def test_hybrid_systemd_accounts_memory_in_v1(machine: Machine) -> None:
    live(
        machine,
        "4:memory:/user.slice/user-1000.slice\n1:name=systemd:/user.slice/user-1000.slice/s.scope\n"
        "0::/user.slice/user-1000.slice/s.scope\n",
        V1_MOUNTS,
        "36 30 0:33 / /sys/fs/cgroup/unified rw,nosuid shared:6 - cgroup2 cgroup2 rw,nsdelegate\n",
    )
    machine.path("/sys/fs/cgroup/unified/user.slice/user-1000.slice/s.scope").mkdir(parents=True)
    top = "/sys/fs/cgroup/memory"
    machine.v1_level(top, usage=3 * GIB, stat=UNLIMITED_HIERARCHY)
    machine.v1_level(f"{top}/user.slice", usage=2 * GIB)
    machine.v1_level(f"{top}/user.slice/user-1000.slice", limit=1 * GIB, usage=900 * MIB)
    assert first(machine) == (f"{top}/user.slice/user-1000.slice/memory.limit_in_bytes", 124)


def test_docker_on_v1(machine: Machine) -> None:
    """Docker mounts the container's own cgroup read-only at the usual place, and the path is still the host's."""
    own = "/docker/5c2ab7"
    live(
        machine,
        f"12:pids:{own}\n4:memory:{own}\n1:name=systemd:{own}\n0::/system.slice/containerd.service\n",
        f"730 729 0:31 {own} /sys/fs/cgroup/memory ro,nosuid,nodev,noexec master:10 - cgroup cgroup rw,memory\n",
    )
    machine.v1_level(
        "/sys/fs/cgroup/memory", limit=256 * MIB, usage=250 * MIB, stat={"hierarchical_memory_limit": 256 * MIB}
    )
    assert first(machine) == ("/sys/fs/cgroup/memory/memory.limit_in_bytes", 6)


def test_docker_on_v1_below_a_limited_parent_that_it_cannot_see(machine: Machine) -> None:
    live(
        machine,
        "4:memory:/build/5c2ab7\n",
        "730 729 0:31 /build/5c2ab7 /sys/fs/cgroup/memory ro master:10 - cgroup cgroup rw,memory\n",
    )
    machine.v1_level("/sys/fs/cgroup/memory", usage=90 * MIB, stat={"hierarchical_memory_limit": 128 * MIB})
    limit = first_limit(machine)
    assert (limit.kind, limit.headroom) == ("cgroup v1 above", 38 * MIB)
    assert Flag.HIDDEN in limit.flags


def test_docker_in_docker_on_v1(machine: Machine) -> None:
    """The inner container's path names the outer one's cgroup, which the inner mount's root does too."""
    own = "/docker/outer/docker/inner"
    live(
        machine,
        f"4:memory:{own}\n",
        "700 699 0:31 /docker/outer /outer/memory ro master:10 - cgroup cgroup rw,memory\n",
        f"730 729 0:31 {own} /sys/fs/cgroup/memory ro master:10 - cgroup cgroup rw,memory\n",
    )
    machine.v1_level("/outer/memory", limit=512 * MIB, usage=400 * MIB)
    machine.v1_level("/outer/memory/docker/inner", limit=128 * MIB, usage=100 * MIB)
    machine.v1_level("/sys/fs/cgroup/memory", limit=128 * MIB, usage=100 * MIB)
    assert first(machine) == ("/sys/fs/cgroup/memory/memory.limit_in_bytes", 28)


def test_a_pod_of_kubernetes_on_v1(machine: Machine) -> None:
    live(
        machine,
        f"11:memory:{CONTAINER}\n3:cpu,cpuacct:{CONTAINER}\n",
        f"1470 1469 0:31 {CONTAINER} /sys/fs/cgroup/memory ro,nosuid master:17 - cgroup cgroup rw,memory\n",
    )
    machine.v1_level(
        "/sys/fs/cgroup/memory",
        limit=512 * MIB,
        usage=300 * MIB,
        stat={"hierarchical_memory_limit": 512 * MIB, "total_inactive_file": 100 * MIB, "total_dirty": 20 * MIB},
    )
    assert first(machine) == ("/sys/fs/cgroup/memory/memory.limit_in_bytes", 292)


def test_the_sandbox_of_gvisor_has_no_proc_self_cgroup(machine: Machine) -> None:
    machine.write("/proc/self/mountinfo", "8 5 0:9 / /sys/fs/cgroup/memory rw - cgroup none rw,memory\n")
    machine.v1_level("/sys/fs/cgroup/memory", limit=256 * MIB, usage=200 * MIB)
    limit = first_limit(machine)
    assert (limit.where, limit.headroom) == ("/sys/fs/cgroup/memory/memory.limit_in_bytes", 56 * MIB)
    assert limit.flags == {Flag.UNCERTAIN}


# --- v2 ---


def test_v2_nested_in_systemd_slices(machine: Machine) -> None:
    live(machine, "0::/app.slice/app-web.slice/web@1.service\n", V2_MOUNT)
    machine.v2_level("/sys/fs/cgroup/app.slice", limit=2 * GIB, usage=1 * GIB)
    machine.v2_level("/sys/fs/cgroup/app.slice/app-web.slice", limit=400 * MIB, usage=390 * MIB)
    machine.v2_level("/sys/fs/cgroup/app.slice/app-web.slice/web@1.service", limit=256 * MIB, usage=60 * MIB)
    assert first(machine) == ("/sys/fs/cgroup/app.slice/app-web.slice/memory.max", 10)


def test_v2_where_the_inner_levels_have_no_controller(machine: Machine) -> None:
    """A service that delegates to itself: memory.max stands on the service, the process two levels below."""
    live(machine, "0::/system.slice/web.service/workers/1\n", V2_MOUNT)
    machine.path("/sys/fs/cgroup/system.slice/web.service/workers/1").mkdir(parents=True)
    machine.v2_level("/sys/fs/cgroup/system.slice", usage=2 * GIB)
    machine.v2_level("/sys/fs/cgroup/system.slice/web.service", limit=256 * MIB, usage=100 * MIB)
    assert first(machine) == ("/sys/fs/cgroup/system.slice/web.service/memory.max", 156)


def test_docker_on_v2_has_a_namespace_of_its_own(machine: Machine) -> None:
    live(
        machine,
        "0::/\n",
        "912 911 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate\n",
    )
    machine.v2_level("/sys/fs/cgroup", limit=256 * MIB, usage=200 * MIB, stat={"inactive_file": 50 * MIB})
    assert first(machine) == ("/sys/fs/cgroup/memory.max", 106)


def test_docker_on_v2_in_the_hosts_namespace(machine: Machine) -> None:
    own = "/system.slice/docker-5c2ab7.scope"
    live(machine, f"0::{own}\n", "912 911 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n")
    machine.v2_level("/sys/fs/cgroup/system.slice", usage=900 * MIB)
    machine.v2_level(f"/sys/fs/cgroup{own}", limit=256 * MIB, usage=255 * MIB)
    assert first(machine) == (f"/sys/fs/cgroup{own}/memory.max", 1)


def test_a_pod_with_a_cgroup_namespace(machine: Machine) -> None:
    live(machine, "0::/\n", "2011 2010 0:27 / /sys/fs/cgroup ro,nosuid,nodev,noexec - cgroup2 cgroup rw\n")
    machine.v2_level("/sys/fs/cgroup", limit=512 * MIB, usage=500 * MIB, stat={"slab_reclaimable": 8 * MIB})
    assert first(machine) == ("/sys/fs/cgroup/memory.max", 16)


def test_a_pod_without_a_cgroup_namespace_is_bound_by_the_pod_too(machine: Machine) -> None:
    live(machine, f"0::{CONTAINER}\n", V2_MOUNT)
    machine.v2_level("/sys/fs/cgroup/kubepods.slice", limit=30 * GIB, usage=20 * GIB)
    machine.v2_level(f"/sys/fs/cgroup{os.path.dirname(POD)}", usage=10 * GIB)
    machine.v2_level(f"/sys/fs/cgroup{POD}", limit=600 * MIB, usage=590 * MIB)
    machine.v2_level(f"/sys/fs/cgroup{CONTAINER}", limit=512 * MIB, usage=200 * MIB)
    assert first(machine) == (f"/sys/fs/cgroup{POD}/memory.max", 10)


def test_a_node_with_less_left_than_the_pods_limit(machine: Machine) -> None:
    live(machine, "0::/\n", V2_MOUNT)
    machine.v2_level("/sys/fs/cgroup", limit=8 * GIB, usage=1 * GIB)
    machine.memory(total=16 * GIB, available=700 * MIB)
    assert first(machine) == ("/proc/meminfo", 700)


def test_a_cgroup_namespace_seen_from_a_sibling_is_searched_for_this_process(machine: Machine) -> None:
    """Both the path and the mount's root lead out of the namespace, as with ``nsenter --mount`` alone."""
    live(
        machine,
        "0::/../../kubepods/burstable/pod7/app\n",
        "52 41 0:27 /../.. /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
    )
    for path, limit in (
        ("", None),
        ("/kubepods", 4 * GIB),
        ("/kubepods/pod6", 64 * MIB),
        ("/kubepods/pod7", 256 * MIB),
    ):
        machine.v2_level(f"/sys/fs/cgroup{path}", limit=limit, usage=60 * MIB)
        machine.write(f"/sys/fs/cgroup{path}/cgroup.procs", "")
    machine.write("/sys/fs/cgroup/kubepods/pod7/cgroup.procs", f"1\n{os.getpid()}\n")
    limit = first_limit(machine)
    assert (limit.where, limit.headroom) == ("/sys/fs/cgroup/kubepods/pod7/memory.max", 196 * MIB)
    assert limit.flags == frozenset()


def test_a_cgroup_namespace_whose_place_cannot_be_settled_is_flagged(machine: Machine) -> None:
    live(machine, "0::/../pod7\n", "52 41 0:27 /../.. /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n")
    machine.v2_level("/sys/fs/cgroup", limit=256 * MIB, usage=60 * MIB)
    limit = first_limit(machine)
    assert (limit.where, limit.flags) == ("/sys/fs/cgroup/memory.max", {Flag.UNCERTAIN})


# --- mounts ---


def test_the_same_mount_listed_twice(machine: Machine) -> None:
    live(machine, "0::/web\n", V2_MOUNT, V2_MOUNT)
    machine.v2_level("/sys/fs/cgroup/web", limit=256 * MIB, usage=60 * MIB)
    assert first(machine) == ("/sys/fs/cgroup/web/memory.max", 196)


def test_a_bind_mount_of_a_part_next_to_the_whole(machine: Machine) -> None:
    """The closest one is taken, though it shows fewer levels: on it, no path can be mistaken."""
    live(
        machine,
        "0::/pods/a/web\n",
        V2_MOUNT,
        "61 41 0:26 /pods/a /mnt/pod rw,relatime - cgroup2 cgroup2 rw\n",
        "62 41 0:26 /pods/b /mnt/other rw,relatime - cgroup2 cgroup2 rw\n",
    )
    for place in ("/sys/fs/cgroup/pods/a", "/mnt/pod"):
        machine.v2_level(place, limit=100 * MIB, usage=90 * MIB)
        machine.v2_level(f"{place}/web", limit=80 * MIB, usage=20 * MIB)
    machine.v2_level("/mnt/other/web", limit=10 * MIB, usage=9 * MIB)
    assert first(machine) == ("/mnt/pod/memory.max", 10)


def test_names_with_colons_spaces_and_octal_escapes(machine: Machine) -> None:
    """systemd's own escapes are plain text for the kernel; its mountinfo escapes are not."""
    live(
        machine,
        "0::/app.slice/dev-disk\\x2dby: a b.service:main\n",
        "30 23 0:26 / /mnt/c\\040group\\134x\\011y rw,relatime shared:4 - cgroup2 cgroup2 rw\n",
    )
    place = "/mnt/c group\\x\ty/app.slice/dev-disk\\x2dby: a b.service:main"
    machine.v2_level(place, limit=256 * MIB, usage=60 * MIB)
    assert first(machine) == (f"{place}/memory.max", 196)


def test_many_optional_fields_and_options_with_dashes(machine: Machine) -> None:
    live(
        machine,
        "4:memory:/web\n",
        "34 30 0:31 / /cg rw shared:10 master:3 propagate_from:2 unbindable x-y:1 - cgroup - rw,a - b,memory\n",
    )
    machine.v1_level("/cg/web", limit=256 * MIB, usage=60 * MIB)
    assert first(machine) == ("/cg/web/memory.limit_in_bytes", 196)


def test_a_line_of_more_than_64_kib_before_and_after_the_cgroups(machine: Machine) -> None:
    layers = ":".join(f"/var/lib/docker/overlay2/l/{number:026}" for number in range(2000))
    overlay = f"99 28 0:50 / /merged rw,relatime - overlay overlay rw,lowerdir={layers}\n"
    assert len(overlay) > 100_000
    live(machine, "0::/web\n", overlay, V2_MOUNT, overlay)
    machine.v2_level("/sys/fs/cgroup/web", limit=256 * MIB, usage=60 * MIB)
    assert first(machine) == ("/sys/fs/cgroup/web/memory.max", 196)


# --- none ---


def test_a_machine_without_cgroups_is_limited_by_itself(machine: Machine) -> None:
    live(machine, "")
    machine.memory(total=4 * GIB, available=1 * GIB)
    assert first(machine) == ("/proc/meminfo", 1024)


def test_cgroups_without_a_single_limit_leave_the_machines_own(machine: Machine) -> None:
    live(machine, "0::/init.scope\n", V2_MOUNT)
    machine.v2_level("/sys/fs/cgroup/init.scope", usage=30 * MIB)
    assert first(machine) == ("/proc/meminfo", 60 * 1024)
