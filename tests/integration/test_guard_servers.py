"""Real servers outlive requests that were all admitted and then want more memory together than there is."""

import time
from pathlib import Path

import plain_http
import pytest
from machine import MIB
from programs import MakeCgroup, burst, preloaded, serve, uvicorn

SERVERS = {
    "uvicorn, asyncio": (*uvicorn("guarded_apps:asgi"), "--loop", "asyncio"),
    "uvicorn, uvloop": (*uvicorn("guarded_apps:asgi"), "--loop", "uvloop"),
    "hypercorn": ("hypercorn", "guarded_apps:asgi", "-b", "127.0.0.1:0", "--graceful-timeout", "1"),
    "gunicorn": ("gunicorn", "guarded_apps:wsgi", "-b", "127.0.0.1:0", "-k", "gthread", "--threads", "120"),
}


def wait_for_200(url: str) -> bool:
    """Admission opens again once the memory of the burst has been given back."""
    for _ in range(500):
        if plain_http.get(url).status_code == 200:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("library", [None, "jemalloc"])
@pytest.mark.parametrize("argv", SERVERS.values(), ids=SERVERS)
def test_the_same_process_serves_on_after_a_race_for_memory(
    child_cgroup: MakeCgroup, argv: tuple[str, ...], library: str | None
) -> None:
    cgroup = child_cgroup(256 * MIB)
    env = preloaded(library) if library else None
    with serve(cgroup, *argv, cwd=Path(__file__).parent, env=env) as server:
        workers = set((cgroup.path / "cgroup.procs").read_text().split())
        for _ in range(3):
            answers = burst(server.port, "/race", 100)
            assert set(answers) <= {200, 503}, "".join(server.log)
            assert answers[200] >= 5, answers
            assert answers[503] >= 20, answers
        assert wait_for_200(server.url)
        assert workers <= set((cgroup.path / "cgroup.procs").read_text().split())
        assert server.process.poll() is None
    assert cgroup.oom_kills() == 0
    assert not [line for line in server.log if "Traceback" in line], "".join(server.log)
