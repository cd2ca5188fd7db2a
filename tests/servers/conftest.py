"""One server after the other, each started once for all its cells; ``--table`` makes what was seen a document."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cells import CELLS
from kinds import KINDS, Kind
from running import RunningServer, running
from table import Seen, document

seen: Seen = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--table", type=Path, help="write the matrix of servers that was seen to this file")


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    kind: Kind = request.param
    with running(kind, tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture
def note() -> Seen:
    """Where what was seen is noted for the table."""
    return seen


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    path: Path | None = config.getoption("--table")
    if path is None:
        return
    if len(seen) < len(KINDS) * len(CELLS):
        terminalreporter.write_line(f"{path} is left as it was: not all cells were seen.")
        return
    text = document(seen)
    path.write_text(text)
    terminalreporter.write(text)
