"""Which requests are never refused. Owns the matching of paths; knows nothing of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from resource_monitor.errors import ConfigurationError

DEFAULT_EXEMPT: tuple[str, ...] = ("/healthz", "/livez", "/health", "/health/live", "/live")
"""Liveness paths in common use: a refused liveness probe gets the process restarted, which amplifies an overload."""

Exempt = Iterable[str] | Callable[[str], bool]


class ExemptPaths:
    """Paths that are always let in: exact ones, prefixes written with a final ``*``, or a callable of the path.

    A path matches with and without the mount point (``root_path``, ``SCRIPT_NAME``) and a trailing slash. Raises
    :class:`ConfigurationError` for a pattern that cannot match any path.
    """

    def __init__(self, exempt: Exempt = DEFAULT_EXEMPT) -> None:
        self._callable = exempt if callable(exempt) else None
        self._exact: set[str] = set()
        self._prefixes: tuple[str, ...] = ()
        if callable(exempt):
            return
        if isinstance(exempt, str):
            raise ConfigurationError(f"exempt={exempt!r} is one text; give a list of paths, such as [{exempt!r}].")
        for pattern in exempt:
            if not isinstance(pattern, str) or not pattern.startswith("/"):
                raise ConfigurationError(
                    f"exempt path {pattern!r} can match no request; write it with a leading slash."
                )
            if pattern.endswith("*"):
                self._prefixes += (pattern[:-1],)
            else:
                self._exact.add(_trim(pattern))

    def match(self, path: str, mount: str = "") -> bool:
        """Whether ``path`` is exempt; ``mount`` is the prefix under which the app is mounted."""
        if self._matches(path):
            return True
        if not mount:
            return False
        # ASGI puts the mount point into path, older servers and WSGI leave it out
        inner = path.removeprefix(mount)
        return self._matches(inner if inner != path else mount + path)

    def _matches(self, path: str) -> bool:
        if self._callable is not None:
            return bool(self._callable(path))
        return _trim(path) in self._exact or path.startswith(self._prefixes)


def _trim(path: str) -> str:
    return path.rstrip("/") or "/"
