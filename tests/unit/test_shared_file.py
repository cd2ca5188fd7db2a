import fcntl
import os
import resource
import socket
import threading
from pathlib import Path

import pytest
from machine import descriptors, descriptors_to_compare_with

from resource_monitor.errors import ProbeError
from resource_monitor.shared_file import SharedFile

HEADER, SIZE = b"header", 8192


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table"


def share(path: Path) -> SharedFile:
    return SharedFile(str(path), HEADER, SIZE)


def test_the_first_to_come_makes_it_and_what_one_writes_the_others_read(path: Path) -> None:
    first, second = share(path), share(path)
    assert (first.created, second.created) == (True, False)
    first.content[100:104] = b"word"
    assert second.content[100:104] == b"word"
    assert second.content[: len(HEADER)] == HEADER
    first.close()
    second.close()


def test_nobody_else_may_open_it_and_its_pages_are_there(path: Path) -> None:
    before = os.umask(0)
    try:
        share(path).close()
    finally:
        os.umask(before)
    status = path.stat()
    assert status.st_mode & 0o777 == 0o600
    assert status.st_size == SIZE
    assert status.st_blocks * 512 >= SIZE


def test_no_program_that_is_started_inherits_it(path: Path) -> None:
    before = descriptors_to_compare_with()
    file = share(path)
    assert not any(os.get_inheritable(descriptor) for descriptor in descriptors() - before)
    file.close()
    assert descriptors() == before


@pytest.mark.parametrize("content", [b"foreign", b"header", b"x" * SIZE, HEADER + bytes(2 * SIZE)])
def test_unfit_content_is_replaced_by_a_new_file_and_not_written_over(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    with path.open("rb") as old:
        file = share(path)
        assert file.created
        assert old.read() == content
    assert path.read_bytes() == HEADER + bytes(SIZE - len(HEADER))
    file.close()


@pytest.mark.parametrize("mode", [0o660, 0o606])
@pytest.mark.parametrize("size", [0, SIZE])
def test_a_file_that_others_may_write_is_replaced(path: Path, mode: int, size: int) -> None:
    path.write_bytes((HEADER + bytes(SIZE))[:size])
    path.chmod(mode)
    file = share(path)
    assert file.created
    assert path.stat().st_mode & 0o777 == 0o600
    file.close()


def test_a_file_with_a_second_name_is_replaced(path: Path) -> None:
    other = path.with_name("other")
    share(path).close()
    other.hardlink_to(path)
    file = share(path)
    assert file.created
    assert not other.samefile(path)
    file.close()


def test_a_symbolic_link_is_refused_and_left_alone(path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(b"precious")
    path.symlink_to(target)
    with pytest.raises(ProbeError, match=r"table: is a symbolic link"):
        share(path)
    assert path.is_symlink()
    assert target.read_bytes() == b"precious"


def test_a_directory_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(ProbeError, match=r"table: .*directory"):
        share(path)


def test_a_pipe_is_refused(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(ProbeError, match=r"table: is no regular file"):
        share(path)


def test_a_socket_is_refused(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        with pytest.raises(ProbeError, match=r"table: "):
            share(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_file_is_refused_and_left_alone(path: Path) -> None:
    share(path).close()
    os.chown(path, 12345, -1)
    before = path.stat()
    with pytest.raises(ProbeError, match=r"table: belongs to user 12345"):
        share(path)
    assert path.stat() == before


def test_a_refusal_leaves_no_descriptor(path: Path) -> None:
    os.mkfifo(path)
    before = descriptors_to_compare_with()
    with pytest.raises(ProbeError):
        share(path)
    assert descriptors() == before


def test_a_directory_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(ProbeError, match=r"away/table: cannot be read: No such file"):
        share(path.with_name("away") / "table")


def test_without_room_for_all_of_it_there_is_no_file_at_all(path: Path) -> None:
    """Half of one would be a SIGBUS for whoever maps it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, hard))
    try:
        with pytest.raises(ProbeError, match=r"table: cannot be used: File too large"):
            share(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not path.exists()


def test_a_file_that_is_removed_while_its_lock_is_waited_for_is_not_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.touch(0o600)
    with path.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def meanwhile() -> None:
            path.unlink()
            fcntl.flock(other, fcntl.LOCK_UN)

        monkeypatch.setattr(os, "sched_yield", meanwhile)
        file = share(path)
    assert not file.gone()
    assert path.stat().st_size == SIZE
    file.close()


def test_a_removed_file_is_seen_to_be_gone_and_the_next_one_is_new(path: Path) -> None:
    old = share(path)
    assert not old.gone()
    old.remove()
    assert old.gone()
    new = share(path)
    assert new.created
    old.remove()
    assert not new.gone()
    old.close()
    new.close()


def test_the_lock_excludes_and_is_not_waited_for_forever(path: Path) -> None:
    first, second = share(path), share(path)
    with first.locked(), pytest.raises(ProbeError, match="kept locked"), second.locked():
        pass
    with second.locked():
        pass
    first.close()
    second.close()


def test_who_finds_an_empty_file_locked_waits_for_the_one_who_makes_it(path: Path) -> None:
    """Else it would take an unfinished file for a spoilt one."""
    files: list[SharedFile] = []
    start = threading.Barrier(8)

    def open_one() -> None:
        start.wait()
        files.append(share(path))

    threads = [threading.Thread(target=open_one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(file.created for file in files) == 1
    assert not any(file.gone() for file in files)
    for file in files:
        file.close()
