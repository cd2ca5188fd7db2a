"""Each framework's example starts with the command in its first line, in 160 MiB, and sheds under the load test.

A slow machine, on which forty threads take turns to fill their blocks, does not hold what 256 MiB hold.
"""

import ast
import json
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import plain_http
import pytest
from machine import MIB
from programs import EXAMPLES, MakeCgroup, environment

REPOSITORY = EXAMPLES.parent
APPS = sorted(path.name for path in EXAMPLES.glob("*_app.py") if path.name != "numpy_app.py")


def command_of(name: str, port: int) -> list[str]:
    """The command that its first line says, to listen at ``port``."""
    docstring = ast.get_docstring(ast.parse((EXAMPLES / name).read_text()))
    assert docstring
    program, *arguments = shlex.split(docstring.splitlines()[0])
    listen = ("--bind", f"127.0.0.1:{port}") if program == "gunicorn" else ("--port", str(port))
    return [str(Path(sys.executable).parent / program), *arguments, *listen]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_every_framework_has_an_example() -> None:
    frameworks = {name.removesuffix("_app.py") for name in APPS}
    assert frameworks == {"aiohttp", "django", "fastapi", "flask", "grpc", "litestar", "quart", "starlette"}


@pytest.mark.parametrize("name", APPS)
def test_an_example_starts_by_its_first_line_and_sheds_under_the_load_test(
    child_cgroup: MakeCgroup, tmp_path: Path, name: str
) -> None:
    cgroup = child_cgroup(160 * MIB)
    port = free_port()
    log = (tmp_path / "log").open("w+")
    server = cgroup.spawn(command_of(name, port), cwd=REPOSITORY, env=environment(None), stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, server)
        assert plain_http.get(f"{url}/work?mb=lots").status_code == 400
        load = subprocess.run(
            [
                *(sys.executable, EXAMPLES / "load_test.py", "--target", f"it={url}", "--require", "it"),
                *("--rate", "250", "--seconds", "4", "--report", tmp_path / "report.html"),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert load.returncode == 0, load.stdout + load.stderr
        done = json.loads(plain_http.get(f"{url}/stats", timeout=30).text)["middleware"]
        assert done["shed"] + done["wasted"] > 50, done
        assert done["admitted"] - done["wasted"] > 20, done
        assert server.poll() is None
    finally:
        server.terminate()
        server.wait(30)
        log.seek(0)
        written = log.read()
        log.close()
    assert cgroup.oom_kills() == 0
    assert "Traceback" not in written, written


def wait_until_ready(url: str, server: "subprocess.Popen[str]") -> None:
    for _ in range(600):
        assert server.poll() is None
        try:
            if plain_http.get(f"{url}/healthz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(f"{url} never answered")
