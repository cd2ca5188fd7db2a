"""Which requests are never refused. Owns the matching of paths; knows nothing of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from resource_monitor.errors import ConfigurationError

logger = logging.getLogger("resource_monitor")

DEFAULT_EXEMPT: tuple[str, ...] = (
    "/healthz",
    "/livez",
    "/readyz",
    "/health",
    "/health/livez",
    "/health/readyz",
    "/health/live",
    "/live",
)
"""Liveness paths in common use: a refused liveness probe gets the process restarted, which amplifies an overload. And
those of ``HealthEndpoint``, which says for itself when there is no readiness: were that refused, each probe would keep
up what it asks about."""

Exempt = Iterable[str] | Callable[[str], bool]


class ExemptPaths:
    """Paths that are always let in: exact ones, prefixes written with a final ``*``, or a callable of the path.

    A path matches with and without the mount point (``root_path``, ``SCRIPT_NAME``) and a trailing slash. Raises
    :class:`ConfigurationError` for a pattern that cannot match any path, and calls the option ``name`` there. A
    callable that fails exempts nothing; the first time is logged.
    """

    def __init__(self, exempt: Exempt = DEFAULT_EXEMPT, name: str = "exempt") -> None:
        self._callable = exempt if callable(exempt) else None
        self._complained = False
        # of paths below no mount point, without a trailing slash, these two tell all where there is no callable
        self.exact: set[str] = set()
        self.prefixes: tuple[str, ...] = ()
        if callable(exempt):
            return
        if isinstance(exempt, str):
            raise ConfigurationError(f"{name}={exempt!r} is one text; give a list of paths, such as [{exempt!r}].")
        for pattern in exempt:
            if not isinstance(pattern, str) or not pattern.startswith("/"):
                raise ConfigurationError(
                    f"{name} path {pattern!r} can match no request; write it with a leading slash."
                )
            if pattern.endswith("*"):
                self.prefixes += (pattern[:-1],)
            else:
                self.exact.add(_trim(pattern))

    @property
    def listed(self) -> bool:
        """Whether they were given as paths, not as a callable."""
        return self._callable is None

    def match(self, path: str, mount: str = "") -> bool:
        """Whether ``path`` is exempt; ``mount`` is the prefix under which the app is mounted."""
        if self._matches(path):
            return True
        mount = mount.rstrip("/")
        if not mount:
            return False
        inner = _below(mount, path)
        return (inner is not None and self._matches(inner)) or self._matches(mount + path)

    def _matches(self, path: str) -> bool:
        if self._callable is None:
            return _trim(path) in self.exact or path.startswith(self.prefixes)
        try:
            return bool(self._callable(path))
        except Exception as error:
            if not self._complained:
                self._complained = True
                logger.error("exempt failed for a path (%r), which is not exempt then.", error)
            return False


def full_path(path: str, mount: str) -> str:
    """``path`` with the mount point, which ASGI has in it already, but older servers and WSGI leave out."""
    mount = mount.rstrip("/")
    return mount + path if mount and _below(mount, path) is None else path


def _below(mount: str, path: str) -> str | None:
    inner = path.removeprefix(mount)
    return (inner or "/") if inner != path and inner[:1] in ("", "/") else None


def _trim(path: str) -> str:
    return path.rstrip("/") or "/"
