"""The ``resource-monitor`` command as a user starts it, in real cgroups."""

import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from child_cgroup import ChildCgroup
from machine import MIB
from programs import TIMEOUT, MakeCgroup, environment, preloaded, start_python

COMMAND = [sys.executable, "-m", "resource_monitor"]
# In a Python that has no rich, whatever is installed.
WITHOUT_RICH = [
    sys.executable,
    "-c",
    "import sys; sys.modules['rich'] = None; from resource_monitor.cli import main; sys.exit(main(sys.argv[1:]))",
]

# As users run it: what is not yet written when something goes wrong must not surface later.
BUFFERED = environment({"PYTHONUNBUFFERED": ""})


def command(*argv: str, env: dict[str, str] | None = None, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [*COMMAND, *argv], capture_output=True, text=True, check=False, timeout=TIMEOUT, env=environment(env), **options
    )


def inside(cgroup: ChildCgroup, *argv: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return cgroup.run([*COMMAND, *argv], env=environment(env))


def on_a_terminal(argv: list[str], env: dict[str, str]) -> str:
    """What ``argv`` writes to a terminal."""
    ours, its = pty.openpty()
    with subprocess.Popen(
        argv, stdout=its, stderr=subprocess.PIPE, env=environment({"TERM": "xterm", **env})
    ) as process:
        os.close(its)
        written = b""
        while True:
            try:
                written += os.read(ours, 65536)
            except OSError:  # EIO: the other side is closed
                break
    os.close(ours)
    assert process.returncode == 0
    return written.decode()


# --- show


def test_show_has_every_resource_and_says_why_a_figure_is_missing(child_cgroup: MakeCgroup) -> None:
    shown = inside(child_cgroup(256 * MIB), "show")
    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    assert lines[1].startswith("MEMORY            256.0 MiB")
    assert [line.split()[0] for line in lines[1:6]] == [
        "MEMORY",
        "OS_MEMORY",
        "ALLOCATOR_MEMORY",
        "OPEN_FILES",
        "TASKS",
    ]
    assert lines[3].split()[1] == "-"
    assert "- ALLOCATOR_MEMORY limit: An allocator has no limit of its own" in shown.stdout


def test_show_as_json_has_null_and_the_reason(child_cgroup: MakeCgroup) -> None:
    shown = json.loads(inside(child_cgroup(256 * MIB), "show", "--json").stdout)
    assert shown["memory"]["limit"] == 256 * MIB
    assert shown["memory"]["limit"] == shown["memory"]["used"] + shown["memory"]["available"]
    assert shown["allocator_memory"]["limit"] is None
    assert "no limit of its own" in shown["allocator_memory"]["reasons"]["limit"]
    assert (shown["open_files"]["unit"], shown["memory"]["unit"]) == ("number", "bytes")


def test_show_goes_on_when_one_figure_cannot_be_read() -> None:
    """Eight descriptors are too few for the limits, and are no reason to be silent about the rest."""
    program = (
        "import resource, sys; from resource_monitor.cli import main; import json, rich; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (6, 6)); sys.exit(main(['show', '--json']))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment(None)
    )
    assert shown.returncode == 1, shown.stderr
    figures = json.loads(shown.stdout)
    assert figures["memory"]["available"] is None
    assert "Too many open files" in figures["memory"]["reasons"]["available"]
    assert figures["allocator_memory"]["used"] > 0


# --- explain


def test_explain_finds_the_parent_that_a_sibling_has_filled(child_cgroup: MakeCgroup) -> None:
    parent = child_cgroup(192 * MIB, label="parent")
    child, sibling = child_cgroup(256 * MIB, parent=parent), child_cgroup(None, parent=parent)
    eater = start_python(sibling, "b = bytearray(100 << 20); print(flush=True); input()")
    with eater:
        assert eater.stdout is not None
        eater.stdout.readline()
        explained = json.loads(inside(child, "explain", "--json").stdout)
        eater.kill()
    first = explained["limits"][explained["first"]]
    assert first["where"].startswith(str(parent.path) + "/memory.")
    assert first["headroom"] < 92 * MIB


def test_explain_reads_the_limits_of_another_process(child_cgroup: MakeCgroup) -> None:
    cgroup = child_cgroup(128 * MIB)
    with start_python(cgroup, "print(flush=True); input()") as process:
        assert process.stdout is not None
        process.stdout.readline()
        explained = command("explain", "--pid", str(process.pid))
        process.kill()
    assert explained.returncode == 0
    assert re.search(r"▶  cgroup v\d( with swap)? +128.0 MiB", explained.stdout)
    assert f"What the allocator of process {process.pid} would give back" in explained.stdout


def test_explain_says_that_ulimit_v_fails_allocations() -> None:
    explained = command("explain", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1024 * MIB, 1024 * MIB)))
    assert re.search(r"▶  address space +1.0 GiB .* MemoryError\n", explained.stdout)
    assert "then allocations fail with MemoryError" in " ".join(explained.stdout.split())


# --- check


@pytest.mark.parametrize("library", ["jemalloc", None])
def test_check_is_content_with_a_limited_cgroup(child_cgroup: MakeCgroup, library: str | None) -> None:
    env = preloaded(library) if library else {}
    checked = inside(child_cgroup(256 * MIB), "check", "--json", env=env)
    assert checked.returncode == 0
    findings = json.loads(checked.stdout)["findings"]
    allocator = next(finding for finding in findings if finding["topic"] == "allocator")
    assert allocator["status"] == ("ok" if library else "note")


def test_check_finds_a_jemalloc_that_was_not_loaded() -> None:
    checked = command("check", env={"LD_PRELOAD": "/nowhere/libjemalloc.so.2"})
    assert "LD_PRELOAD names /nowhere/libjemalloc.so.2, but that did not become" in " ".join(checked.stdout.split())


def test_check_fails_without_any_limit(child_cgroup: MakeCgroup) -> None:
    checked = inside(child_cgroup(None), "check")
    assert checked.returncode == 1
    assert "problem limit" in checked.stdout


def test_check_takes_a_declared_limit(child_cgroup: MakeCgroup) -> None:
    assert inside(child_cgroup(None), "check", "--limit", "256MiB").returncode == 0


# --- output and bad input


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "the following arguments are required: COMMAND; see resource-monitor --help"),
        (["explain", "--pid", "me"], "argument --pid: 'me' is no process id, which is a positive number; see"),
        (["explain", "--pid", "0"], "argument --pid: '0' is no process id, which is a positive number; see"),
        (["explain", "--pid", "4194305"], "there is no process 4194305; ps lists those there are"),
        (["watch", "--pid", "4194305"], "there is no process 4194305; ps lists those there are"),
        (["explain", "--limit", "lots"], "argument --limit: 'lots' is not a size; give bytes as a number"),
        (["check", "--limit", "0"], "argument --limit: '0' leaves no memory at all; give the real limit; see"),
        (["watch", "--interval", "soon"], "argument --interval: 'soon' is no interval; give seconds between"),
        (["watch", "--interval", "nan"], "argument --interval: 'nan' is no interval; give seconds between"),
        (["watch", "--count", "0"], "argument --count: '0' is no number of samples; give a positive number; see"),
        (["run"], "there is no command to run; give it after --"),
        (
            ["run", "--preload", "/nowhere.so", "--", "true"],
            "'/nowhere.so' cannot be preloaded: cannot open shared object",
        ),
        (
            ["run", "--preload", "/a b.so", "--", "true"],
            "'/a b.so' cannot be preloaded: LD_PRELOAD separates by colons",
        ),
    ],
)
def test_bad_input_is_answered_with_one_sentence_and_status_2(argv: list[str], sentence: str) -> None:
    answered = command(*argv)
    assert answered.returncode == 2
    assert answered.stderr.startswith(f"resource-monitor: {sentence}")
    assert answered.stderr.count("\n") == 1
    assert not answered.stdout


def test_a_limit_in_the_environment_that_is_none_is_bad_input_for_show_too() -> None:
    shown = command("show", env={"RESOURCE_MONITOR_LIMIT": "lots"})
    assert shown.returncode == 2
    assert shown.stderr.startswith("resource-monitor: RESOURCE_MONITOR_LIMIT: 'lots' is not a size")


@pytest.mark.parametrize("argv", [["explain"], ["explain", "--json"], ["watch", "--interval", "0.01"]])
def test_ends_quietly_when_nobody_reads_on(argv: list[str]) -> None:
    """As ``resource-monitor explain | head -1`` does, at the latest when the pipe is full."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        ended = subprocess.run(
            [*COMMAND, *argv], stdout=pipe, stderr=subprocess.PIPE, check=False, env=BUFFERED, timeout=TIMEOUT
        )
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, b"")


def test_closed_output_is_no_output() -> None:
    script = 'exec "$@" >&-'
    ended = subprocess.run(
        ["sh", "-c", script, "sh", *COMMAND, "explain"],
        stderr=subprocess.PIPE,
        check=False,
        env=BUFFERED,
        timeout=TIMEOUT,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_terminal_without_unicode_loses_signs_and_no_figures() -> None:
    env = {"PYTHONIOENCODING": "ascii"}
    assert re.search(r"^\?  host memory|\?  cgroup", command("explain", env=env).stdout, re.MULTILINE)


@pytest.mark.parametrize("argument", ["explain", "--help", "--version"])
def test_says_in_a_sentence_that_the_disk_is_full(argument: str) -> None:
    with open("/dev/full", "wb") as disk:
        ended = subprocess.run(
            [*COMMAND, argument], stdout=disk, stderr=subprocess.PIPE, text=True, check=False, env=BUFFERED
        )
    assert (ended.returncode, ended.stderr) == (1, "resource-monitor: the output: No space left on device\n")


def test_a_terminal_gets_colour_and_a_pipe_does_not() -> None:
    assert "\x1b[31m" in on_a_terminal([*COMMAND, "explain"], {})
    assert "\x1b" not in command("explain").stdout


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_where_none_is_wanted(env: dict[str, str]) -> None:
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", on_a_terminal([*COMMAND, "explain"], env))


def test_a_terminal_that_cannot_move_its_cursor_gets_lines() -> None:
    assert "\x1b" not in on_a_terminal([*COMMAND, "watch", "--count", "1"], {"TERM": "dumb"})


def test_without_rich_the_words_are_the_same() -> None:
    plain = on_a_terminal([*WITHOUT_RICH, "check", "--limit", "1GiB"], {})
    coloured = on_a_terminal([*COMMAND, "check", "--limit", "1GiB"], {})
    assert "\x1b" not in plain
    topics = [line[8:20] for line in plain.splitlines()]
    assert topics == [line[8:20] for line in re.sub(r"\x1b\[[0-9;]*m", "", coloured).splitlines()]


def test_the_script_is_installed() -> None:
    script = Path(sys.executable).with_name("resource-monitor")
    ran = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\d+\.\d+\S*\n", ran.stdout)
