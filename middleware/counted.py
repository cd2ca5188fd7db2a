"""A counted resource, descriptors or tasks, of which some must be left."""

from __future__ import annotations

from resource_monitor.errors import ConfigurationError
from resource_monitor.resource import Resource
from resource_monitor.sampling import Sampler


class Counted:
    """``floor`` of ``resource`` must be left. Raises :class:`ConfigurationError` for what is not counted."""

    def __init__(self, resource: Resource, floor: int) -> None:
        counted = (Resource.OPEN_FILES, Resource.TASKS)
        if resource not in counted:
            raise ConfigurationError(
                f"also has {resource!r}, which is not counted; give Resource.OPEN_FILES or Resource.TASKS "
                "(min_available is for memory)."
            )
        if isinstance(floor, bool) or not isinstance(floor, int) or floor < 0:
            raise ConfigurationError(f"also has {floor!r} for {resource}; give how many must be left, such as 32.")
        self._floor = floor
        self._label = resource.name.replace("_", " ").lower()
        self._resource = resource
        self._sampler: Sampler | None = None

    def shortage(self) -> str | None:
        """What is short, for the log, or ``None`` while enough is left. Raises :class:`ProbeError`."""
        if self._sampler is None:
            self._sampler = self._resource.count()
        assert self._sampler is not None  # counted, as __init__ has seen
        left = self._sampler.headroom()
        return None if left >= self._floor else f"{left} {self._label} left, {self._floor} wanted"

    @property
    def fresh_until(self) -> float:
        """How long the answer of :meth:`shortage` stands; seconds of :func:`time.monotonic`."""
        return self._sampler.fresh_until if self._sampler is not None else 0.0
