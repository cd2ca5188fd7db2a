"""How unit tests that try many examples do that, and what those of granted requests stand on."""

from collections.abc import Iterator

import pytest
from granted import know_all_classes
from hypothesis import settings

from resource_monitor.guard import IN_SERVER, place
from resource_monitor.middleware import readings

# What a busy machine takes for one example says nothing.
settings.register_profile("units", deadline=None)


def pytest_collectstart() -> None:
    """For the tests of this directory, which take what is loaded when they are imported: fuzz tests search longer."""
    settings.load_profile("units")


@pytest.fixture
def every_class_known_and_no_real_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    know_all_classes(monkeypatch)
    monkeypatch.setattr(readings, "ensure_installed", lambda monitor: None)


@pytest.fixture
def in_the_server() -> Iterator[None]:
    """As a server's thread is."""
    before, place()[0] = place()[0], IN_SERVER
    yield
    place()[0] = before
