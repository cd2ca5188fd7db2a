"""The Rust original's example: memory is taken until hardly any is left, given back, and available again."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest
from child_cgroup import ChildCgroup
from machine import MIB
from programs import EXAMPLES, TIMEOUT, MakeCgroup, environment, preloaded


def huge_pages_everywhere() -> bool:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return setting.exists() and "[always]" in setting.read_text()


@pytest.mark.parametrize("library", ["jemalloc", None])
def test_available_falls_and_comes_back(child_cgroup: MakeCgroup, library: str | None) -> None:
    cgroup: ChildCgroup = child_cgroup(128 * MIB)
    env = environment(preloaded(library) if library else None)
    done = cgroup.run([sys.executable, EXAMPLES / "use_all_memory.py"], env=env, timeout=TIMEOUT)
    assert (done.returncode, done.stderr, cgroup.oom_kills()) == (0, "", 0)
    before, after = done.stdout.split("Clearing\n")
    falling = [int(line.removeprefix("Available: ")) for line in before.splitlines()]
    [back] = [int(line.removeprefix("Available: ")) for line in after.splitlines()]
    assert falling[0] > 80 * MIB
    assert falling[-1] < 13 * MIB
    assert len(falling) > 35
    # the kernel charges in batches, so that one step may show next to nothing and the next one twice as much
    assert all(later <= earlier + MIB for earlier, later in pairwise(falling))
    # of a huge page given back in part, the whole stays charged until the kernel splits it, and it does not tell
    assert back > (falling[0] * 2 // 3 if huge_pages_everywhere() else falling[0] - 8 * MIB)
