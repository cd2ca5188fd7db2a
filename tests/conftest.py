"""Fixtures that every part of the suite shares."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from child_cgroup import CannotCreate, ChildCgroup, find_home
from machine import Clock, Machine, Service

from resource_monitor import guard


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips", action="store_true", help="fail when a test is skipped: this machine is meant to have everything"
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not session.config.getoption("--no-skips"):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter.stats.get("skipped") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def _no_options_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of whoever runs the tests would be everyone's: a limit part of every reading, for one."""
    for name in [name for name in os.environ if name.startswith("RESOURCE_MONITOR_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _no_guard_left_behind() -> Iterator[None]:
    """The guard is one a process: left by one test's middleware it would refuse the next one's allocations."""
    yield
    if guard._installed is not None:
        guard._installed.uninstall()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service(machine: Machine, clock: Clock) -> Service:
    """A container that can be made short of memory at will."""
    return Service(machine, clock)


@pytest.fixture
def child_cgroup() -> Iterator[Callable[..., ChildCgroup]]:
    """Makes real cgroups with a limit; all are emptied and removed at the end, inner ones first, whatever happened."""
    try:
        find_home()
    except CannotCreate as error:
        pytest.skip(f"no memory-limited cgroup can be made here: {error}")
    with ExitStack() as stack:

        def make(limit: int | None, **options: Any) -> ChildCgroup:
            return stack.enter_context(ChildCgroup(limit, **options))

        yield make
