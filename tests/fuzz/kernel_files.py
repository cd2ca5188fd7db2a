"""Strategies for what the kernel's files hold: mostly as documented, often damaged, sometimes anything at all."""

from hypothesis import strategies as st

U64 = 2**64 - 1

numbers = st.one_of(
    st.integers(0, U64),
    st.sampled_from([0, 1, 4095, 4096, 1 << 20, 1 << 30, 2**63 - 4096, 2**63 - 1, 2**63, U64]),
    st.integers(0, 1 << 36),
).map(str)
# What stands where a number should: other numbers, other words, nothing.
words = st.one_of(
    numbers,
    st.sampled_from(["max", "-1", "", "unlimited", "0x10", "1e9", "+5", "-", "18446744073709551616", "٣", "9" * 40]),
    st.text(st.characters(codec="utf-8", exclude_characters="\n\0"), max_size=8),
)
anything = st.one_of(
    st.binary(max_size=200), st.text(max_size=100).map(lambda text: text.encode(errors="surrogatepass"))
)

names = st.one_of(
    st.sampled_from(["a", "b", "..", ".", "app.slice", "a:b", "x y", "deep", "kubepods", "(deleted)", "a (deleted)"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\n\0/"), min_size=1, max_size=6),
)
paths = st.lists(names, max_size=4).map(lambda parts: "/" + "/".join(parts))
controllers = st.lists(st.sampled_from(["memory", "pids", "cpu", "name=systemd", ""]), max_size=3).map(",".join)


def often(strategy: st.SearchStrategy[bytes], *usual: str) -> st.SearchStrategy[bytes | None]:
    """Three times in five one of ``usual``, which costs next to nothing to draw; else ``strategy``, or ``None``."""
    few = st.sampled_from([text.encode() for text in usual])
    return st.one_of(few, few, few, strategy, st.none())


def damaged(text: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    """``text``, now and then cut short, with a byte changed, or replaced by anything."""

    def damage(content: bytes, how: int, at: int, byte: int) -> bytes:
        at %= len(content) + 1
        if how == 0:
            return content[:at]
        if how == 1:
            return content[:at] + bytes([byte]) + content[at + 1 :]
        return content

    encoded = text.map(lambda content: content.encode(errors="surrogateescape"))
    whole = st.builds(damage, encoded, st.integers(0, 7), st.integers(0, 4096), st.integers(0, 255))
    return st.one_of(whole, whole, whole, anything)


def escaped(path: str) -> str:
    return "".join(f"\\{ord(char):03o}" if char in " \t\n\\" else char for char in path)


memberships = st.lists(
    st.builds("{}:{}:{}{}\n".format, words, controllers, paths, st.sampled_from(["", "", " (deleted)"])), max_size=5
).map("".join)
mount_lines = st.builds(
    "{} 20 0:26 {} {} rw{} - {} none {}\n".format,
    st.integers(1, 99),
    paths.map(escaped),
    paths.map(escaped),
    st.sampled_from(["", " shared:1", " shared:1 master:2 propagate_from:3 unbindable", " -"]),
    st.sampled_from(["cgroup", "cgroup2", "ext4", "-"]),
    st.sampled_from(["rw,memory", "rw", "rw,pids", "rw,name=a - b,memory", ""]),
)
mounts = st.lists(mount_lines, max_size=5).map("".join)

statm = st.lists(words, max_size=8).map(" ".join)
file_nr = st.lists(words, max_size=4).map("\t".join)
loadavg = st.builds("{} 0.1 0.2 {}/{} 4711\n".format, words, words, words)
one_word = st.builds("{}\n".format, words)
limits_table = st.lists(
    st.builds(
        "{:<25} {:<20} {:<20} {:<10}\n".format,
        st.sampled_from(["Max address space", "Max data size", "Max open files", "Max processes", "Max x", "Limit"]),
        words,
        words,
        st.sampled_from(["bytes", "files", ""]),
    ),
    max_size=6,
).map("".join)
meminfo = st.lists(
    st.builds(
        "{}:   {} {}\n".format,
        st.sampled_from(["MemTotal", "MemAvailable", "CommitLimit", "Committed_AS", "MemFree", "HugePages_Total"]),
        words,
        st.sampled_from(["kB", "kB", ""]),
    ),
    max_size=8,
).map("".join)
stat = st.lists(
    st.builds(
        "{} {}\n".format,
        st.sampled_from(
            [
                "inactive_file",
                "active_file",
                "file_mapped",
                "shmem",
                "slab_reclaimable",
                "total_inactive_file",
                "total_dirty",
                "hierarchical_memory_limit",
                "anon",
            ]
        ),
        words,
    ),
    max_size=8,
).map("".join)
status = st.builds("Name:\t{}\nUid:\t{} 1 1 1\nCapEff:\t{}\n".format, words, words, words)

# What a file holds: ``None`` for one that is there and cannot be read.
number_file = often(
    damaged(one_word), "max\n", "-1\n", "0\n", "104857600\n", "268435456\n", f"{2**63 - 4096}\n", f"{U64}\n", ""
)
stat_file = often(
    damaged(stat),
    "",
    "inactive_file 50000000\nactive_file 9000000\nfile_mapped 5000000\nshmem 1\nslab_reclaimable 77\n",
    "total_inactive_file 50000000\ntotal_dirty 60000000\nhierarchical_memory_limit 50000000\n",
    f"inactive_file {U64}\nactive_file {U64}\nslab_reclaimable {U64}\nhierarchical_memory_limit {2**63 - 4096}\n",
    "inactive_file\n",
)
MEMINFO = "MemTotal: {} kB\nMemAvailable: {} kB\nCommitLimit: {} kB\nCommitted_AS: {} kB\n".format
PROC_FILES = {
    "/proc/meminfo": often(
        damaged(meminfo), MEMINFO(9 << 20, 5 << 20, 6 << 20, 7 << 20), MEMINFO(1, 2, 2, 1), "MemTotal: 5\n"
    ),
    "/proc/loadavg": often(damaged(loadavg), "0.1 0.2 0.3 1/200 4711\n", "0.1 0.2 0.3", f"0.1 0.2 0.3 1/{U64} 4711\n"),
    "/proc/sys/vm/overcommit_memory": often(damaged(one_word), "0\n", "2\n"),
    "/proc/sys/kernel/threads-max": number_file,
    "/proc/sys/fs/file-nr": often(damaged(file_nr), "9000\t100\t9216\n", "1\t2\t3\n", f"{U64}\t0\t0\n", "9\t9\n"),
    "/proc/self/statm": often(damaged(statm), "9000 2000 100 700 0 5000 0\n", f"{U64} {U64} 1 1 0 {U64} 0\n", "1 2\n"),
    "/proc/self/limits": often(
        damaged(limits_table),
        "Max data size  9000000 9000000 bytes\nMax address space  unlimited  bytes\nMax open files 2 3 files\n",
        "Max data size   unlimited unlimited bytes\nMax address space  1 1 bytes\nMax processes 10 unlimited\n",
        "Limit Soft Hard\n",
    ),
    "/proc/self/status": often(
        damaged(status), "Uid:\t7 7 7 7\nCapEff:\t0\n", "Uid:\t0 0 0 0\nCapEff:\tff\n", "Uid:\t7\n"
    ),
}
CGROUP_FILES = {
    "memory.max": number_file,
    "memory.high": number_file,
    "memory.current": number_file,
    "memory.limit_in_bytes": number_file,
    "memory.usage_in_bytes": number_file,
    "memory.memsw.limit_in_bytes": number_file,
    "memory.memsw.usage_in_bytes": number_file,
    "memory.stat": stat_file,
    "pids.max": number_file,
    "pids.current": number_file,
}
PLACES = [
    ("4:memory,pids:/a/b\n", "1 0 0:1 / /cg rw - cgroup cgroup rw,memory,pids\n"),
    ("0::/a/b\n", "1 0 0:1 / /cg rw - cgroup2 none rw\n"),
]
_places = st.one_of(
    *(st.just((line.encode(), mount.encode())) for line, mount in PLACES),
    st.tuples(often(damaged(memberships), "0::/\n"), often(damaged(mounts), PLACES[1][1])),
)
_level_files = st.lists(
    st.one_of(
        *(
            st.tuples(st.sampled_from([f"{level}/{name}" for level in ("/cg/a/b", "/cg/a", "/cg")]), content)
            for name, content in CGROUP_FILES.items()
        )
    ),
    max_size=10,
)


def _machine(
    place: tuple[bytes | None, bytes | None],
    proc: dict[str, bytes | None],
    levels: list[tuple[str, bytes | None]],
    descriptors: int,
) -> dict[str, bytes | None]:
    return {
        "/proc/self/cgroup": place[0],
        "/proc/self/mountinfo": place[1],
        **proc,
        **dict(levels),
        **{f"/proc/self/fd/{number}": b"" for number in range(descriptors)},
    }


machines = st.builds(_machine, _places, st.fixed_dictionaries({}, optional=PROC_FILES), _level_files, st.integers(0, 3))
"""Files by path. Mostly a process in /cg/a/b, so that the readers find levels to read; else anywhere."""
