"""``resource-monitor watch`` in a real terminal (tmux), in a pipe, and when what it watches ends."""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from child_cgroup import ChildCgroup
from machine import MIB
from programs import TIMEOUT, MakeCgroup, environment, start_python

COMMAND = [sys.executable, "-m", "resource_monitor", "watch", "--interval", "0.05"]
HOLD = "b = bytearray(100 << 20); print(flush=True); input()"


class Terminal:
    """A tmux of its own with one window that runs a shell."""

    def __init__(self, socket: Path) -> None:
        self._tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]
        shell = ["env", "-i", f"PATH={os.environ['PATH']}", "TERM=screen", "LANG=C.UTF-8", "PS1=$ ", "sh"]
        self._do("new-session", "-d", "-x", "80", "-y", "24", *shell)
        self.wait_for(lambda screen: "$" in screen)

    def resize(self, width: int, height: int) -> None:
        self._do("resize-window", "-x", str(width), "-y", str(height))

    def keys(self, *keys: str) -> None:
        self._do("send-keys", *keys)

    def text(self) -> str:
        return self._do("capture-pane", "-p")

    def wait_for(self, condition: Callable[[str], object]) -> str:
        """The screen as soon as ``condition`` holds for it."""
        until = time.monotonic() + TIMEOUT
        while not condition(text := self.text()):
            assert time.monotonic() < until, text
            time.sleep(0.05)
        return text

    def close(self) -> None:
        self._do("kill-server")

    def _do(self, *argv: str) -> str:
        return subprocess.run([*self._tmux, *argv], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    terminal = Terminal(tmp_path / "tmux")
    yield terminal
    terminal.close()


@pytest.fixture
def cgroup(child_cgroup: MakeCgroup) -> ChildCgroup:
    return child_cgroup(256 * MIB)


@pytest.fixture
def holder(cgroup: ChildCgroup) -> Iterator[subprocess.Popen[str]]:
    """A process with 100 MB."""
    with start_python(cgroup, HOLD) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def watch(*argv: str, **options: object) -> subprocess.Popen[str]:
    buffered = environment({"PYTHONUNBUFFERED": ""})
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [*COMMAND, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=buffered, **options
    )


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50)])
def test_draws_a_chart_that_fills_the_terminal(
    terminal: Terminal, holder: subprocess.Popen[str], width: int, height: int
) -> None:
    terminal.resize(width, height)
    terminal.keys(f"{' '.join(COMMAND)} --pid {holder.pid}", "Enter")
    lines = terminal.wait_for(lambda text: text.count("█") > 60).splitlines()
    assert re.match(rf"process {holder.pid} \(python.*\): cgroup v\d.* of 256.0 MiB \(/sys/", lines[0])
    assert lines[0].endswith("in_bytes)") or lines[0].endswith("memory.max)")
    assert re.match(r"available +1\d\d\.\d MiB  in use +1\d\d\.\d MiB  reclaimable", lines[1])
    (axis,) = [line for line in lines if "└" in line]
    assert len(axis) == width
    assert len(lines) >= height - 1
    assert max(map(len, lines)) <= width


def test_follows_the_size_of_the_terminal(terminal: Terminal, holder: subprocess.Popen[str]) -> None:
    terminal.keys(f"{' '.join(COMMAND)} --interval 3600 --pid {holder.pid}", "Enter")
    for width in (80, 200, 60):
        terminal.resize(width, 30)
        axis = re.compile(rf"^ +0 └─{{{width - 12}}}$", re.MULTILINE)
        terminal.wait_for(axis.search)


def test_ctrl_c_ends_it_with_status_0_and_gives_the_terminal_back(
    terminal: Terminal, holder: subprocess.Popen[str]
) -> None:
    terminal.keys("echo before", "Enter")
    terminal.keys(f"{' '.join(COMMAND)} --pid {holder.pid}", "Enter")
    terminal.wait_for(lambda text: "█" in text)
    terminal.keys("C-c")
    terminal.wait_for(lambda text: "█" not in text and "before" in text)
    terminal.keys("echo status $?", "Enter")
    screen = terminal.wait_for(lambda text: "status 0" in text)
    assert "Traceback" not in screen


def test_a_signal_that_ends_it_gives_the_terminal_back(terminal: Terminal, holder: subprocess.Popen[str]) -> None:
    terminal.keys(f"sh -c 'echo $$ >&2; exec {' '.join(COMMAND)} --pid {holder.pid}' 2>&1; echo status $?", "Enter")
    pid = terminal.wait_for(lambda text: re.search(r"^(\d+)$", text, re.MULTILINE)).split("$?")[-1].split()[0]
    terminal.wait_for(lambda text: "█" in text)
    os.kill(int(pid), signal.SIGTERM)
    screen = terminal.wait_for(lambda text: re.search(r"^status \d", text, re.MULTILINE))
    assert f"status {128 + signal.SIGTERM}" in screen
    assert "█" not in screen
    assert "Traceback" not in screen


def test_says_that_the_process_has_ended(terminal: Terminal, holder: subprocess.Popen[str]) -> None:
    terminal.keys(f"{' '.join(COMMAND)} --pid {holder.pid}; echo status $?", "Enter")
    terminal.wait_for(lambda text: "█" in text)
    holder.kill()
    screen = terminal.wait_for(lambda text: re.search(r"^status 0", text, re.MULTILINE))
    assert re.search(rf"^process {holder.pid} \(python.*\) has ended\.$", screen, re.MULTILINE)


def test_in_a_pipe_it_prints_a_line_a_sample(holder: subprocess.Popen[str]) -> None:
    with watch("--pid", str(holder.pid), "--count", "3") as process:
        out, err = process.communicate(timeout=TIMEOUT)
    title, *samples = out.splitlines()
    assert title.startswith(f"process {holder.pid} (python")
    assert len(samples) == 3
    for sample in samples:
        assert re.fullmatch(r"\d\d:\d\d:\d\d  available +1\d\d\.\d MiB  in use +1\d\d\.\d MiB  reclaimable .*B", sample)
        assert len(sample) <= 80
    assert (process.returncode, err) == (0, "")


def test_without_a_process_it_watches_its_own_cgroup(cgroup: ChildCgroup) -> None:
    ran = cgroup.run([*COMMAND, "--count", "1"], env=environment(None))
    assert re.match(r"this cgroup: cgroup v\d.* of 256\.0 MiB", ran.stdout)


def test_in_a_pipe_a_line_is_there_as_soon_as_it_is_known(holder: subprocess.Popen[str]) -> None:
    with watch("--pid", str(holder.pid), "--interval", "3600") as process:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], TIMEOUT)
        process.send_signal(signal.SIGINT)
    assert ready
    assert process.returncode == 0


def test_interrupted_in_a_pipe_it_ends_with_status_0(holder: subprocess.Popen[str]) -> None:
    with watch("--pid", str(holder.pid)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, err) == (0, "")


def test_a_zombie_has_ended_already(cgroup: ChildCgroup) -> None:
    with start_python(cgroup, "print(flush=True)") as ended:
        assert ended.stdout is not None
        ended.stdout.read()
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        with watch("--pid", str(ended.pid)) as process:
            _, err = process.communicate(timeout=TIMEOUT)
    assert err == f"resource-monitor: process {ended.pid} has ended already; ps lists those that run\n"
    assert process.returncode == 2


def test_a_process_that_becomes_a_zombie_has_ended(cgroup: ChildCgroup) -> None:
    with start_python(cgroup, "print(flush=True); input()") as ended:
        assert ended.stdout is not None
        ended.stdout.readline()
        with watch("--pid", str(ended.pid)) as process:
            assert process.stdout is not None
            process.stdout.readline()
            ended.kill()
            out, err = process.communicate(timeout=TIMEOUT)
    assert out.splitlines()[-1].endswith("has ended.")
    assert (process.returncode, err) == (0, "")


def test_an_oom_kill_around_the_end_is_said_and_is_status_1(cgroup: ChildCgroup) -> None:
    with start_python(cgroup, "print(flush=True); input(); b = bytearray(400 << 20)") as victim:
        assert victim.stdout is not None
        assert victim.stdin is not None
        victim.stdout.readline()
        with watch("--pid", str(victim.pid)) as process:
            assert process.stdout is not None
            process.stdout.readline()
            victim.stdin.write("\n")
            victim.stdin.flush()
            out, _ = process.communicate(timeout=TIMEOUT)
    assert out.splitlines()[-1].endswith("has ended; 1 OOM kill in its cgroup since.")
    assert process.returncode == 1


def test_without_rich_a_terminal_gets_lines(terminal: Terminal, holder: subprocess.Popen[str]) -> None:
    program = "import sys; sys.modules['rich'] = None; from resource_monitor.cli import main; sys.exit(main())"
    terminal.keys(f'{sys.executable} -c "{program}" watch --count 2 --interval 0.05 --pid {holder.pid}', "Enter")
    screen = terminal.wait_for(lambda text: len(re.findall(r"^\d\d:\d\d:\d\d  available", text, re.MULTILINE)) == 2)
    assert "note: install rich for a live chart in place of lines" in screen
