"""Whole machines made at random: the readers answer with headrooms within their limits, or a ProbeError with a path."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from kernel_files import U64, machines

from resource_monitor.errors import ProbeError
from resource_monitor.explanation import explain
from resource_monitor.limits import (
    DECISIVE,
    FULL,
    RECLAIMABLE,
    USAGE,
    LimitReader,
    memory_limits,
    open_file_limits,
    task_limits,
)

Readers = Callable[[], LimitReader]


class Tree:
    """One directory for all examples: what the last one left is removed, and only files that differ cost anything."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def fill(self, files: dict[str, bytes | None]) -> None:
        """``None`` is a directory in the file's place: it is there, and reading it fails."""
        for entry in self.root.iterdir():
            shutil.rmtree(entry)
        (self.root / "proc/self").mkdir(parents=True)
        for path, content in files.items():
            file = self.root / path.lstrip("/")
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                if content is None:
                    file.mkdir()
                else:
                    file.write_bytes(content)
            except OSError:
                continue  # two names in each other's way, or one that no file system takes


@pytest.fixture(scope="module")
def tree() -> Iterator[Tree]:
    place = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="resource-monitor-fuzz-", dir=place) as directory:
        yield Tree(Path(directory))


def check(open_reader: Readers) -> None:
    try:
        reader = open_reader()
    except ProbeError as error:
        assert error.path.startswith("/")
        return
    for tier, margin in (
        (FULL, 0),
        (USAGE, 0),
        (RECLAIMABLE, 0),
        (DECISIVE, 0),
        (RECLAIMABLE, U64),
        (USAGE, 1 << 30),
        (FULL, U64),
    ):
        try:
            assert reader.read(tier, margin)
        except ProbeError as error:
            assert error.path.startswith("/")
        well_formed(reader)


def well_formed(reader: LimitReader) -> None:
    limits = reader.limits()
    for limit in limits:
        if limit.value is None:
            assert (limit.used, limit.headroom, limit.headroom_low) == (None, None, None)
            continue
        assert limit.headroom is not None
        assert limit.headroom_low is not None
        assert 0 <= limit.headroom_low <= limit.headroom <= limit.value
    assert 0 <= reader.free <= U64
    first = reader.first()
    if first is not None:
        assert first in limits
        assert reader.headroom == first.headroom
        assert reader.tightest <= (first.value or 0)


@given(machines)
def test_any_machine_is_read_or_refused_with_a_probe_error(tree: Tree, files: dict[str, bytes | None]) -> None:
    tree.fill(files)
    root = str(tree.root)
    check(lambda: memory_limits(root=root, declared=1 << 28))
    check(lambda: task_limits(root=root))
    check(lambda: open_file_limits(root=root))
    try:
        found = explain(root=root)
    except ProbeError as error:
        assert error.path.startswith("/")
        return
    assert found.sentence.endswith(".")
    biting = [limit.headroom for limit in found.limits if limit.headroom is not None]
    assert biting == sorted(biting)
    assert (found.first is None) == (not biting)
    assert found.first is None or found.first.headroom == biting[0]
