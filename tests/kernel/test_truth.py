"""What is said to be available can be had, and what cannot be had is not said to be available."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from child_cgroup import ChildCgroup
from machine import MIB
from programs import MakeCgroup, preloaded, run_python, start_python

FILE_SIZE = 96 * MIB
# Where these hold a file, reading it charges page cache. tmpfs charges shmem, and 9p may cache nothing at all.
DISK_FILE_SYSTEMS = {"ext2/ext3", "xfs", "btrfs", "zfs", "f2fs"}


def file_system(path: Path) -> str:
    return subprocess.run(["stat", "-f", "-c", "%T", path], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system with a page cache: a loop-mounted ext4 image where the temporary one has none."""
    if file_system(tmp_path) in DISK_FILE_SYSTEMS:
        yield tmp_path
        return
    if not Path("/dev/loop-control").exists() and shutil.which("modprobe"):
        subprocess.run(["modprobe", "loop"], check=False)
    image, mount = tmp_path / "image", tmp_path / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(FILE_SIZE + 48 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    made = subprocess.run(["mount", "-o", "loop", image, mount], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no file system with a page cache here: {made.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)


@pytest.fixture
def uncached_file(disk: Path) -> Path:
    """A file of which nothing is in the page cache, so that whoever reads it is charged for it."""
    path = disk / "file"
    with path.open("wb") as file:
        for _ in range(FILE_SIZE // MIB):
            file.write(b"x" * MIB)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


@pytest.fixture
def shared_memory_file() -> Iterator[Path]:
    path = Path(f"/dev/shm/resource-monitor-test-{os.getpid()}")
    yield path
    path.unlink(missing_ok=True)


def test_a_container_full_of_page_cache_sheds_nothing(child_cgroup: MakeCgroup, uncached_file: Path) -> None:
    program = """
        import json, sys
        from resource_monitor import default_monitor
        from resource_monitor.middleware.gate import Gate

        gate = Gate()
        admitted = 0
        for _ in range(2):  # the second time some of it is on the active list
            with open(sys.argv[1], "rb", buffering=0) as file:
                while file.read(1 << 20):
                    request = gate.enter("GET", "/")
                    if request:
                        admitted += 1
                        request.leave()
        limit = next(limit for limit in default_monitor().limits() if limit.value == 64 << 20)
        block = bytearray(b"x") * (24 << 20)  # and indeed it can be had
        print(json.dumps([admitted, gate.statistics().shed, limit.value - limit.used, limit.headroom]))
    """
    admitted, shed, naive, headroom = run_python(child_cgroup(64 * MIB), program, uncached_file)
    assert naive < 16 * MIB, "the page cache does not fill the cgroup: this test shows nothing"
    assert headroom > 24 * MIB
    assert (admitted, shed) == (2 * FILE_SIZE // MIB, 0)


def test_a_container_full_of_shared_memory_sheds(child_cgroup: MakeCgroup, shared_memory_file: Path) -> None:
    program = """
        import json, os, sys
        from resource_monitor.middleware.gate import Gate

        gate = Gate()
        written = 0
        with open(sys.argv[1], "wb", buffering=0) as file:
            while request := gate.enter("GET", "/"):
                written += file.write(b"x" * (1 << 20))
                request.leave()
        os.unlink(sys.argv[1])
        print(json.dumps([written, gate.statistics().shed, gate.enter("GET", "/") is not None]))
    """
    written, shed, afterwards = run_python(child_cgroup(64 * MIB), program, shared_memory_file)
    assert 8 * MIB < written < 48 * MIB
    assert shed == 1
    assert afterwards is True


def test_refuses_when_a_sibling_ate_the_parents_memory(child_cgroup: MakeCgroup) -> None:
    parent = child_cgroup(200 * MIB, label="parent")
    roomy = child_cgroup(150 * MIB, label="roomy", parent=parent)
    sibling = child_cgroup(190 * MIB, label="sibling", parent=parent)
    program = """
        import json
        from resource_monitor import default_monitor
        from resource_monitor.middleware.gate import Gate

        values = {limit.value: limit.headroom for limit in default_monitor().limits()}
        gate = Gate(min_available="64MiB")
        admitted = gate.enter("GET", "/") is not None
        print(json.dumps([values[150 << 20], values[200 << 20], admitted, default_monitor().read().where]))
    """
    leaf, least, admitted, where = run_python(roomy, program)
    assert leaf < least
    assert (admitted, where) == (True, str(where_of(roomy)))
    eater = start_python(sibling, "block = bytearray(b'x') * (130 << 20); print('full', flush=True); input()")
    with eater:
        try:
            assert eater.stdout is not None
            assert eater.stdout.readline() == "full\n"
            leaf, least, admitted, where = run_python(roomy, program)
        finally:
            eater.kill()
    assert leaf > 100 * MIB, "the leaf itself has plenty"
    assert least < 64 * MIB
    assert (admitted, where) == (False, str(where_of(parent)))


def where_of(cgroup: ChildCgroup) -> Path:
    return cgroup.path / ("memory.max" if cgroup.version == 2 else "memory.limit_in_bytes")


def test_every_nested_level_is_seen(child_cgroup: MakeCgroup) -> None:
    outer = child_cgroup(300 * MIB, label="outer")
    middle = child_cgroup(200 * MIB, label="middle", parent=outer)
    inner = child_cgroup(100 * MIB, label="inner", parent=middle)
    program = """
        import json
        from resource_monitor import default_monitor
        print(json.dumps([limit.value for limit in default_monitor().limits()
                          if limit.kind in ("cgroup v1", "cgroup v2")]))
    """
    values = run_python(inner, program)
    assert [value for value in values if value in (100 * MIB, 200 * MIB, 300 * MIB)] == [
        100 * MIB,
        200 * MIB,
        300 * MIB,
    ]


@pytest.mark.parametrize("library", ["jemalloc", None])
def test_nine_tenths_of_what_is_available_can_be_allocated(child_cgroup: MakeCgroup, library: str | None) -> None:
    program = """
        import json
        from resource_monitor import Resource
        available = Resource.MEMORY.available()
        block = bytearray(b"x") * int(0.9 * available)
        print(json.dumps([available, len(block), Resource.MEMORY.available()]))
    """
    env = preloaded(library) if library else None
    available, taken, left = run_python(child_cgroup(128 * MIB), program, env=env)
    assert 80 * MIB < available < 128 * MIB
    assert left < available - taken + 4 * MIB
