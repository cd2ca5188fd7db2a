"""The errors this package raises: one base, few leaves, each message one sentence with the remedy in it."""

import os


class ResourceMonitorError(Exception):
    """Base of every error of this package."""


class ConfigurationError(ResourceMonitorError, ValueError):
    """A setting cannot be used as given."""


class NotApplicable(ResourceMonitorError):
    """The figure asked for has no meaning for this resource."""


class GuardError(ResourceMonitorError, RuntimeError):
    """The allocation guard cannot be installed here."""


class MemoryPressure(ResourceMonitorError, MemoryError):
    """There is no room for what was about to start; the middlewares answer 503 as they do for a ``MemoryError``."""


class ProbeError(ResourceMonitorError):
    """A file that tells limits or usage cannot be read or does not hold what it should; ``path`` names it."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem

    def __reduce__(self) -> tuple[type["ProbeError"], tuple[str, str]]:
        return type(self), (self.path, self.problem)

    @classmethod
    def from_errno(cls, path: str, number: int) -> "ProbeError":
        """For an errno that a read or open of ``path`` gave."""
        return cls(path, f"cannot be read: {os.strerror(number)}")
