"""How long to search: 200 examples a test, 10,000 where ``CI`` is set or ``HYPOTHESIS_PROFILE=ci`` asks for it."""

import os

from hypothesis import HealthCheck, settings

# No deadline: what a busy machine takes for one example says nothing.
settings.register_profile("default", max_examples=200, deadline=None)
settings.register_profile(
    "ci", max_examples=10_000, deadline=None, derandomize=False, suppress_health_check=[HealthCheck.too_slow]
)


def pytest_collectstart() -> None:
    """For the tests of this directory, which take what is loaded when they are imported: unit tests search less."""
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "default"))
