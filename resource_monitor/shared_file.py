"""A small file that processes of one user map together: whose it must be, how it is made, its lock, its end.

What it holds beyond its header is the caller's business. Whatever is unfit is replaced by a new file and never cut or
written over: another process may have it mapped, and pages that are gone end that process with SIGBUS.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import time
from collections.abc import Iterator

from resource_monitor.errors import ProbeError

# How often a file is opened anew that others remove at that moment, and how many seconds the lock is waited for: it is
# held for some 100 µs, unless its holder was stopped.
_TRIES, _PATIENCE = 4, 0.02


class SharedFile:
    """A file mapped by this process, ``owner``; a child made by fork opens its own, since it would share the lock."""

    __slots__ = ("_descriptor", "content", "created", "owner", "path")

    def __init__(self, path: str, header: bytes, size: int) -> None:
        """Map ``path``, which begins with ``header`` and has ``size`` bytes, the rest zero if it is ``created`` now.

        Raises :class:`ProbeError` when that cannot be had, or what is in the way is not ours to replace.
        """
        self.owner = os.getpid()
        self.path = path
        for _ in range(_TRIES):
            self._descriptor = _open(path)
            try:
                created = self._prepare(header, size)
                if created is not None:
                    self.created = created
                    self.content = mmap.mmap(self._descriptor, size)
                    return
            except BaseException as error:
                os.close(self._descriptor)
                if isinstance(error, OSError):
                    raise ProbeError(path, f"cannot be used: {error.strerror}") from error
                raise
            os.close(self._descriptor)
        raise ProbeError(path, "is removed again and again by another process")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock. Raises :class:`ProbeError` when another process does not let go of it."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ProbeError(self.path, "is kept locked by another process") from None
                os.sched_yield()  # not a sleep, in which gevent would run other requests
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def gone(self) -> bool:
        """Whether the file was removed, so that nobody else finds it any more."""
        return os.fstat(self._descriptor).st_nlink == 0

    def remove(self) -> None:
        """Remove the file; the lock is held."""
        if not self.gone():
            os.unlink(self.path)

    def close(self) -> None:
        """Unmap the file; it stays where it is."""
        self.content.close()
        os.close(self._descriptor)

    def _prepare(self, header: bytes, size: int) -> bool | None:
        """Whether the open file had to be made; ``None`` when another one is to be opened in its place."""
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ProbeError(self.path, "is no regular file; remove it")
        if status.st_uid != os.geteuid():
            raise ProbeError(self.path, f"belongs to user {status.st_uid}; remove it")
        if self._fits(header, size):  # the header is written last
            return False
        with self.locked():
            status = os.fstat(self._descriptor)
            if status.st_nlink == 0:
                return None
            if self._fits(header, size):
                return False
            if status.st_size > 0 or not _private(status):
                os.unlink(self.path)
                return None
            try:
                # a page that cannot be had when it is written to would be a SIGBUS
                os.posix_fallocate(self._descriptor, 0, size)
            except OSError:
                os.unlink(self.path)
                raise
            os.pwrite(self._descriptor, header, 0)
            return True

    def _fits(self, header: bytes, size: int) -> bool:
        status = os.fstat(self._descriptor)
        return _private(status) and status.st_size == size and os.pread(self._descriptor, len(header), 0) == header


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ProbeError(path, "is a symbolic link; remove it") from None
        raise ProbeError.from_errno(path, error.errno or errno.EIO) from error


def _private(status: os.stat_result) -> bool:
    """Whether nobody else could have opened the file for writing, under this or another name."""
    return not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and status.st_nlink == 1
