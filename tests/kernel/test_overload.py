"""The promise itself: a burst that gets a server killed gets some 503s from the same server in one more line."""

import pytest
from machine import MIB
from programs import EXAMPLES, MakeCgroup, burst, preloaded, serve, uvicorn

# A hundred requests of 8 MB at once are 800 MB. All hold what they took until the last one has come, however slow the
# machine is.
REQUESTS = 100
PATH = "/work?mb=8&hold=3"


@pytest.mark.parametrize("library", ["jemalloc", None])
def test_a_wrapped_app_survives_a_burst(child_cgroup: MakeCgroup, library: str | None) -> None:
    cgroup = child_cgroup(256 * MIB)
    env = preloaded(library) if library else None
    with serve(cgroup, *uvicorn("app:app"), cwd=EXAMPLES, env=env) as server:
        answers = burst(server.port, PATH, REQUESTS)
        assert server.process.poll() is None
        assert cgroup.oom_kills() == 0
        assert answers[200] >= 5
        assert answers[503] >= 5
        assert answers[200] + answers[503] == REQUESTS
        assert burst(server.port, PATH, 1) == {200: 1}, "after the burst there is room again"


def test_the_same_app_without_it_is_killed(child_cgroup: MakeCgroup) -> None:
    cgroup = child_cgroup(256 * MIB)
    with serve(cgroup, *uvicorn("unprotected:app"), cwd=EXAMPLES) as server:
        answers = burst(server.port, PATH, REQUESTS)
        assert server.process.wait(60) == -9
    assert cgroup.oom_kills() >= 1
    assert answers["lost"] > 0
