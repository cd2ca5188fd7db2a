import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine import Machine

from resource_monitor import cgroup
from resource_monitor.cgroup import Membership, Mount, parse_memberships, parse_mounts, resolve
from resource_monitor.errors import ProbeError


def levels(machine: Machine) -> tuple[str, ...]:
    hierarchy = resolve(root=str(machine))
    assert hierarchy is not None
    return hierarchy.levels


# --- /proc/PID/cgroup ---


def test_a_path_may_hold_colons() -> None:
    assert parse_memberships("4:memory:/a:b:c\n", "f") == [Membership(4, ("memory",), "/a:b:c")]


def test_controllers_mounted_together_are_told_apart() -> None:
    assert parse_memberships("3:cpu,cpuacct:/x\n0::/y\n", "f") == [
        Membership(3, ("cpu", "cpuacct"), "/x"),
        Membership(0, (), "/y"),
    ]


def test_the_mark_of_a_removed_cgroup_is_not_part_of_its_name() -> None:
    assert parse_memberships("0::/gone (deleted)\n", "f")[0].path == "/gone"


def test_a_name_may_hold_what_python_takes_for_a_line_end() -> None:
    assert parse_memberships("0::/a\x85b\u2028c\r\n", "f")[0].path == "/a\x85b\u2028c\r"


@pytest.mark.parametrize("line", ["nonsense", "x:memory:/a", "٤:memory:/a", "4:memory:a", "4:memory", ":memory:/"])
def test_names_the_file_and_the_line_that_is_no_membership(line: str) -> None:
    with pytest.raises(ProbeError, match="number:controllers:/path") as e:
        parse_memberships(line + "\n", "/proc/7/cgroup")
    assert e.value.path == "/proc/7/cgroup"
    assert repr(line) in str(e.value)


# --- mountinfo ---


@pytest.mark.parametrize("optional", ["", "shared:1 ", "shared:1 master:2 propagate_from:3 unbindable "])
def test_any_number_of_optional_fields_may_stand_before_the_dash(optional: str) -> None:
    line = f"30 20 0:26 /r /m rw {optional}- cgroup cgroup rw,memory\n"
    assert list(parse_mounts([line], "f")) == [Mount("/r", "/m", 1, ("rw", "memory"))]


def test_a_mount_point_named_dash_is_not_the_separator() -> None:
    line = "30 20 0:26 / - rw - cgroup2 cgroup2 rw\n"
    assert next(parse_mounts([line], "f")).mount_point == "-"


def test_super_options_can_hold_spaces() -> None:
    line = "30 20 0:26 / /m rw - cgroup cgroup rw,name=a b,memory\n"
    assert next(parse_mounts([line], "f")).super_options == ("rw", "name=a b", "memory")


def test_octal_escapes_are_undone_once() -> None:
    line = r"30 20 0:26 /a\040b /c\011d\012e\134040 rw - cgroup2 none rw" + "\n"
    mount = next(parse_mounts([line], "f"))
    assert (mount.root, mount.mount_point) == ("/a b", "/c\td\ne\\040")


def test_other_file_systems_are_passed_over() -> None:
    assert list(parse_mounts(["22 1 8:1 / / rw - ext4 /dev/root rw\n"], "f")) == []


@pytest.mark.parametrize("line", ["", "30 20 0:26 / /m rw", "30 20 0:26 / /m rw -", "- - - - - -"])
def test_names_the_file_and_the_line_that_is_no_mount(line: str) -> None:
    with pytest.raises(ProbeError, match="no mountinfo line") as e:
        list(parse_mounts([line], "/proc/7/mountinfo"))
    assert e.value.path == "/proc/7/mountinfo"


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_is_read_or_refused_with_a_probe_error(memberships: str, mounts: str) -> None:
    for parse in (lambda: parse_memberships(memberships, "f"), lambda: list(parse_mounts([mounts], "f"))):
        try:
            parse()
        except ProbeError:
            continue


# --- the place of a process ---


def test_v2_lists_every_level_from_the_leaf_to_the_mount(machine: Machine) -> None:
    machine.v2("/a/b")
    machine.v2_level("/sys/fs/cgroup", usage=3)
    machine.v2_level("/sys/fs/cgroup/a", usage=2)
    machine.v2_level("/sys/fs/cgroup/a/b", usage=1)
    assert resolve(root=str(machine)) == cgroup.Hierarchy(
        2,
        "/sys/fs/cgroup",
        ("/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"),
        uncertain=False,
    )


def test_v2_leaves_out_levels_without_the_memory_controller(machine: Machine) -> None:
    machine.v2("/a/b")
    machine.v2_level("/sys/fs/cgroup/a", usage=2)
    machine.path("/sys/fs/cgroup/a/b").mkdir()
    assert levels(machine) == ("/sys/fs/cgroup/a",)


def test_v1_lists_every_level_from_the_leaf_to_the_mount(machine: Machine) -> None:
    machine.v1("/a/b")
    machine.v1_level("/sys/fs/cgroup/memory/a/b", usage=1)
    hierarchy = resolve(root=str(machine))
    assert hierarchy == cgroup.Hierarchy(
        1,
        "/sys/fs/cgroup/memory",
        ("/sys/fs/cgroup/memory/a/b", "/sys/fs/cgroup/memory/a", "/sys/fs/cgroup/memory"),
        uncertain=False,
    )


def test_a_hybrid_machine_accounts_memory_in_v1(machine: Machine) -> None:
    machine.process(
        "5:memory:/svc\n1:name=systemd:/svc\n0::/svc\n",
        "40 20 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        "41 20 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
        "42 20 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
    )
    machine.path("/sys/fs/cgroup/unified/svc").mkdir(parents=True)
    machine.v1_level("/sys/fs/cgroup/memory/svc", usage=1)
    assert levels(machine)[0] == "/sys/fs/cgroup/memory/svc"


def test_a_unified_mount_without_the_controller_is_no_memory_hierarchy(machine: Machine) -> None:
    machine.v2("/svc", mount="/sys/fs/cgroup/unified")
    machine.path("/sys/fs/cgroup/unified/svc").mkdir(parents=True)
    assert resolve(root=str(machine)) is None


def test_v1_memory_does_not_hold_a_process_without_a_line_of_it(machine: Machine) -> None:
    machine.process(
        "0::/svc\n",
        "41 20 0:28 / /v1 rw - cgroup cgroup rw,memory\n42 20 0:29 / /v2 rw - cgroup2 cgroup2 rw\n",
    )
    machine.v1_level("/v1", usage=1)
    machine.v2_level("/v2/svc", usage=1)
    assert levels(machine) == ("/v2/svc",)


def test_a_sandbox_without_proc_self_cgroup_has_its_v1_mount(machine: Machine) -> None:
    machine.write("/proc/self/mountinfo", "30 20 0:26 / /sys/fs/cgroup/memory rw - cgroup none rw,memory\n")
    machine.v1_level("/sys/fs/cgroup/memory", usage=1)
    hierarchy = resolve(root=str(machine))
    assert hierarchy is not None
    assert (hierarchy.levels, hierarchy.uncertain) == (("/sys/fs/cgroup/memory",), True)


def test_a_bind_mount_of_our_own_cgroup_is_its_own_root(machine: Machine) -> None:
    """What Docker does on v1: the mount shows /docker/ID as its root, and the path still names it."""
    machine.v1("/docker/abc", root="/docker/abc")
    machine.v1_level("/sys/fs/cgroup/memory", usage=1)
    assert levels(machine) == ("/sys/fs/cgroup/memory",)


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_mounts_the_closest_one_counts(machine: Machine, order: int) -> None:
    mounts = [
        "1 0 0:1 / /far rw - cgroup2 none rw\n",
        "2 0 0:1 /a /near rw - cgroup2 none rw\n",
        "3 0 0:1 /a/bb /other rw - cgroup2 none rw\n",
    ]
    machine.process("0::/a/b\n", "".join(mounts[::order]))
    for directory in ("/far/a/b", "/near/b", "/other"):
        machine.v2_level(directory, usage=1)
    assert levels(machine)[0] == "/near/b"


def test_a_root_is_a_prefix_by_whole_components_only(machine: Machine) -> None:
    machine.process("0::/abc\n", "1 0 0:1 /ab /m rw - cgroup2 none rw\n2 0 0:1 / /all rw - cgroup2 none rw\n")
    machine.v2_level("/m/c", usage=1)
    machine.v2_level("/all/abc", usage=1)
    assert levels(machine) == ("/all/abc",)


@pytest.mark.parametrize(("path", "root"), [("/../other", "/"), ("/x", "/../.."), ("/../../kubepods/pod1", "/..")])
def test_a_namespaced_place_is_found_by_our_pid(machine: Machine, path: str, root: str) -> None:
    machine.v2(path, root=root)
    machine.v2_level("/sys/fs/cgroup/kubepods/pod1", usage=1)
    machine.write("/sys/fs/cgroup/cgroup.procs", f"{os.getpid()}9\n")
    machine.write("/sys/fs/cgroup/kubepods/pod1/cgroup.procs", f"1\n{os.getpid()}\n")
    hierarchy = resolve(root=str(machine))
    assert hierarchy is not None
    assert hierarchy.levels == ("/sys/fs/cgroup/kubepods/pod1",)
    assert not hierarchy.uncertain


def test_a_place_that_cannot_be_settled_is_said_to_be_uncertain(machine: Machine) -> None:
    machine.v2("/../other", root="/")
    machine.v2_level("/sys/fs/cgroup", usage=1)
    hierarchy = resolve(root=str(machine))
    assert hierarchy == cgroup.Hierarchy(2, "/sys/fs/cgroup", ("/sys/fs/cgroup",), uncertain=True)


def test_a_path_that_the_mount_does_not_show_is_searched_for(machine: Machine) -> None:
    machine.v1("/docker/abc")  # cgroup of the host's view, mount of the container's
    machine.v1_level("/sys/fs/cgroup/memory/inner", usage=1)
    machine.write("/sys/fs/cgroup/memory/inner/cgroup.procs", f"{os.getpid()}\n")
    assert levels(machine)[0] == "/sys/fs/cgroup/memory/inner"


def test_the_search_goes_on_where_a_cgroup_cannot_be_looked_into(machine: Machine) -> None:
    machine.v2("/..")
    machine.make_unreadable("/sys/fs/cgroup/aaa/cgroup.procs")
    machine.v2_level("/sys/fs/cgroup/bbb", usage=1)
    machine.write("/sys/fs/cgroup/bbb/cgroup.procs", f"{os.getpid()}\n")
    assert levels(machine) == ("/sys/fs/cgroup/bbb",)


def test_the_search_is_bounded(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "_SEARCH_LIMIT", 2)
    machine.v2("/..")
    machine.v2_level("/sys/fs/cgroup", usage=1)
    machine.write("/sys/fs/cgroup/a/b/cgroup.procs", f"{os.getpid()}\n")
    hierarchy = resolve(root=str(machine))
    assert hierarchy is not None
    assert hierarchy.uncertain


def test_a_mount_that_vanished_is_searched_without_a_fault(machine: Machine) -> None:
    machine.v1("/x")
    hierarchy = resolve(root=str(machine))
    assert hierarchy is not None
    assert hierarchy.uncertain


def test_names_with_spaces_and_colons_are_found(machine: Machine) -> None:
    machine.process("0::/my svc:1\n", "1 0 0:1 / /cg\\040roup rw - cgroup2 none rw\n")
    machine.v2_level("/cg roup/my svc:1", usage=1)
    assert levels(machine) == ("/cg roup/my svc:1",)


@pytest.mark.parametrize("name", ["car\rriage", "by\udcffte", "next\x85line"])
def test_names_that_are_no_plain_text_are_found(machine: Machine, name: str) -> None:
    """A name is any bytes but NUL, newline and slash; \\udcff stands for the byte 255, as everywhere in Python."""
    machine.path(f"/{name}/{name}").mkdir(parents=True)
    for file, text in (("cgroup", f"4:memory:/{name}\n"), ("mountinfo", f"1 0 0:1 / /{name} rw - cgroup x memory\n")):
        machine.path(f"/proc/self/{file}").write_bytes(os.fsencode(text))
    assert levels(machine) == (f"/{name}/{name}", f"/{name}")


def test_a_mountinfo_line_longer_than_64_kib_is_read_whole(machine: Machine) -> None:
    long = "1 0 0:1 / /overlay rw - overlay overlay rw,lowerdir=" + ":".join(["/var/lib/layer"] * 6000)
    assert len(long) > 65536
    machine.process("0::/a\n", f"{long}\n2 0 0:1 / /m rw - cgroup2 none rw\n")
    machine.v2_level("/m/a", usage=1)
    assert levels(machine) == ("/m/a",)


def test_a_machine_without_cgroups_has_no_hierarchy(machine: Machine) -> None:
    assert resolve(root=str(machine)) is None
    machine.process("0::/\n", "22 1 8:1 / / rw - ext4 /dev/root rw\n")
    assert resolve(root=str(machine)) is None


@pytest.mark.parametrize("file", ["cgroup", "mountinfo"])
def test_a_file_that_is_there_but_cannot_be_read_is_an_error_that_names_it(machine: Machine, file: str) -> None:
    machine.v2("/")
    machine.make_unreadable(f"/proc/self/{file}")
    with pytest.raises(ProbeError, match="cannot be read: Is a directory") as e:
        resolve(root=str(machine))
    assert e.value.path == f"/proc/self/{file}"


def test_another_process_is_found_by_its_pid(machine: Machine) -> None:
    machine.write("/proc/77/cgroup", "0::/seven\n")
    machine.write("/proc/self/mountinfo", "1 0 0:1 / /m rw - cgroup2 none rw\n")
    machine.v2_level("/m/seven", usage=1)
    hierarchy = resolve(pid=77, root=str(machine))
    assert hierarchy is not None
    assert hierarchy.levels == ("/m/seven",)


@pytest.mark.parametrize("version", [1, 2])
def test_a_process_in_a_container_is_found_where_this_one_sees_it(machine: Machine, version: int) -> None:
    """It has its own cgroup mounted at the place where we have all of them."""
    scope, kind = "/system.slice/docker-x.scope", {1: "cgroup cgroup rw,memory", 2: "cgroup2 cgroup2 rw"}[version]
    mount = "/sys/fs/cgroup"
    machine.process("0::/\n4:memory:/\n", f"30 20 0:26 / {mount} rw - {kind}\n")
    machine.write("/proc/77/cgroup", f"0::{scope}\n4:memory:{scope}\n")
    machine.write("/proc/77/mountinfo", f"30 20 0:26 {scope} {mount} rw - {kind}\n")
    (machine.v1_level if version == 1 else machine.v2_level)(mount + scope, usage=1)
    hierarchy = resolve(pid=77, root=str(machine))
    assert hierarchy is not None
    assert (hierarchy.levels[0], hierarchy.uncertain) == (mount + scope, False)


def test_a_process_that_is_not_there_is_an_error(machine: Machine) -> None:
    with pytest.raises(ProbeError, match="there is no such process"):
        resolve(pid=78, root=str(machine))


def test_the_process_that_runs_this_has_a_place_or_none_on_the_real_machine() -> None:
    hierarchy = resolve()
    assert hierarchy is None or all(os.path.isdir(level) for level in hierarchy.levels)
