"""What clients see of a refusal, server by server, and that nothing is left behind by it."""

import pytest
from cells import CELLS
from running import RunningServer
from table import Seen


@pytest.mark.parametrize("cell", CELLS)
def test_what_the_client_sees(server: RunningServer, cell: str, note: Seen) -> None:
    server.log()
    outcome = CELLS[cell].see(server)
    expected = server.kind.expected(cell, CELLS[cell].expected)
    assert set(outcome.split(" or ")) <= set(expected.split(" or "))
    note[server.kind.name, cell] = expected
    if server.process.poll() is None:
        server.settle()
        logged = server.log()
        assert "Traceback" not in logged, logged
