"""Every parser, on anything: a well-formed result, or the one error that names what was read. Never another one."""

import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kernel_files import U64, anything, damaged, limits_table, memberships, meminfo, mounts, one_word, stat

from resource_monitor._native import ffi, lib
from resource_monitor.cgroup import parse_memberships, parse_mounts
from resource_monitor.errors import ConfigurationError, ProbeError
from resource_monitor.units import Amount, format_size, parse_amount, parse_size

EBADMSG = 74
UNTOUCHED = 7


def text(content: bytes) -> str:
    return content.decode(errors="surrogateescape")


@given(damaged(memberships))
def test_memberships(content: bytes) -> None:
    try:
        found = parse_memberships(text(content), "/proc/7/cgroup")
    except ProbeError as error:
        assert error.path == "/proc/7/cgroup"
        return
    assert len(found) == len([line for line in content.split(b"\n") if line])
    for membership in found:
        assert membership.hierarchy >= 0
        assert membership.path.startswith("/")
        assert "" not in membership.controllers


@given(damaged(mounts))
def test_mounts(content: bytes) -> None:
    try:
        found = list(parse_mounts(io.StringIO(text(content), newline="\n"), "/proc/7/mountinfo"))
    except ProbeError as error:
        assert error.path == "/proc/7/mountinfo"
        return
    for mount in found:
        assert mount.version in (1, 2)


@given(damaged(one_word))
def test_one_number(content: bytes) -> None:
    value = ffi.new("unsigned long long *", UNTOUCHED)
    error = lib.rm_parse_integer(content, len(content), value)
    trimmed = content.rstrip(b"\n ")
    if trimmed in (b"max", b"-1"):
        assert (error, value[0]) == (0, U64)
    elif trimmed.isdigit() and int(trimmed) <= U64:
        assert (error, value[0]) == (0, int(trimmed))
    else:
        assert error == EBADMSG


KEYS = (b"inactive_file", b"hierarchical_memory_limit", b"MemTotal:", b"CommitLimit:")


@given(damaged(stat | meminfo))
@example(b"MemTotal:\x00  100 kB\n").via("a key ends at its space, not at a byte that ends a string of C")
def test_keys(content: bytes) -> None:
    names = [ffi.new("char[]", key) for key in KEYS]
    values = ffi.new("unsigned long long[]", [UNTOUCHED] * len(KEYS))
    found = lib.rm_parse_keys(content, len(content), ffi.new("const char *[]", names), len(KEYS), values)
    lines = [line for line in content.split(b"\n") if line.split(b" ", 1)[0] in KEYS and b" " in line]
    if found < 0:
        assert found == -EBADMSG
        assert lines
        return
    present = {line.split(b" ", 1)[0] for line in lines}
    assert found == len(present)
    for key, value in zip(KEYS, values, strict=True):
        assert key in present or value == UNTOUCHED


@given(damaged(limits_table), st.sampled_from([b"Max open files", b"Max address space", b"Max"]))
def test_resource_limits(content: bytes, name: bytes) -> None:
    value = ffi.new("unsigned long long *", UNTOUCHED)
    error = lib.rm_parse_rlimit(content, len(content), name, value)
    assert error in (0, EBADMSG)
    if error == 0:
        [line] = [line for line in content.split(b"\n") if line.startswith(name + b" ")][:1]
        rest = line[len(name) :].lstrip(b" ")
        if rest[:1].isdigit():
            rest = rest.lstrip(b"0") if rest.lstrip(b"0")[:1].isdigit() else b"0"
        assert rest.startswith(b"unlimited" if value[0] == U64 and not rest[:1].isdigit() else b"%d" % value[0])


@given(damaged(limits_table | stat | one_word))
def test_what_is_read_ends_where_the_content_ends(content: bytes) -> None:
    """The bytes behind it would change every result if they were read."""
    key = ffi.new("char[]", b"inactive_file")
    keys = ffi.new("const char *[]", [key])
    value = ffi.new("unsigned long long *")

    def results(behind: bytes) -> list[tuple[int, int]]:
        buffer = ffi.from_buffer("char[]", content + behind)
        found = []
        for parse in (
            lambda: lib.rm_parse_integer(buffer, len(content), value),
            lambda: lib.rm_parse_keys(buffer, len(content), keys, 1, value),
            lambda: lib.rm_parse_rlimit(buffer, len(content), b"Max open files", value),
        ):
            value[0] = UNTOUCHED
            outcome = parse()
            found.append((outcome, value[0] if outcome >= 0 else UNTOUCHED))
        return found

    assert results(b"9 kB\ninactive_file 9\nMax open files 9 9\n") == results(b"\0")


@given(anything)
def test_sizes(content: bytes) -> None:
    check_size(text(content))


units = st.sampled_from(["", "b", "k", "KiB", "MB", "m", "GiB", "t", "%", " %", "parsecs", "kk"])
sizes = st.builds(
    "{}{}{}".format,
    st.one_of(st.integers(-5, 10**22), st.decimals(allow_nan=True), st.text(max_size=4)),
    st.sampled_from(["", " "]),
    units,
)


@given(st.one_of(sizes, st.builds("clamp({},{},{})".format, sizes, sizes, sizes)))
def test_sizes_as_people_might_write_them(value: str) -> None:
    check_size(value)


@given(st.one_of(st.integers(), st.floats(), st.none(), st.booleans(), st.lists(st.integers())))
def test_sizes_of_other_types(value: object) -> None:
    check_size(value)


def check_size(value: object) -> None:
    try:
        size = parse_size(value)  # type: ignore[arg-type]
    except ConfigurationError as error:
        assert repr(value) in str(error)
        size = None
    try:
        amount = parse_amount(value)  # type: ignore[arg-type]
    except ConfigurationError:
        assert size is None, "a size is an amount"
        return
    if size is not None:
        assert size >= 0
        assert format_size(size)
        assert amount == Amount(None, size, size)
    for limit in (0, 1, 4096, 1 << 40, U64):
        assert amount.of(limit) >= 0


@pytest.mark.parametrize("value", ["1e400", "9" * 400, "clamp(0,0%,0)"])
def test_extremes(value: str) -> None:
    check_size(value)
