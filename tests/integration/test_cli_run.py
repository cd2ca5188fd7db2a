"""``resource-monitor run``: what the command gets to see."""

import ctypes.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from programs import TIMEOUT, environment, preloaded

COMMAND = [sys.executable, "-m", "resource_monitor", "run"]
SHOW = (
    "import json, os, signal; from resource_monitor.allocator import allocator; print(json.dumps({"
    "'allocator': allocator().name, 'object': allocator().object, 'sigpipe': int(signal.getsignal(signal.SIGPIPE)),"
    "**{name: os.environ.get(name) for name in ('LD_PRELOAD', 'MALLOC_CONF')}}))"
)
PROGRAM = [sys.executable, "-c", SHOW]
# What Debian, Ubuntu and the demo's image call it.
JEMALLOC = "libjemalloc.so.2"


def run(*argv: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *argv], capture_output=True, text=True, check=False, timeout=TIMEOUT, env=environment(env)
    )


def run_changed(change: str, *argv: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The same in a Python in which something of it has been replaced, to be what this machine is not."""
    program = f"import sys; from resource_monitor.cli import main, preload, run; {change}; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", program, "run", *argv],
        capture_output=True,
        text=True,
        check=True,
        env=environment(env),
        timeout=TIMEOUT,
    )


def seen(*argv: str, env: dict[str, str] | None = None) -> dict[str, str | None]:
    """What the program saw when it was run with these options."""
    ran = run(*argv, "--", *PROGRAM, env=env)
    assert (ran.returncode, ran.stderr) == (0, "")
    return json.loads(ran.stdout)  # type: ignore[no-any-return]


@pytest.fixture
def jemalloc() -> str:
    """The path of the real one."""
    preload = preloaded("jemalloc")
    program = "from resource_monitor.allocator import allocator; print(allocator().object)"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment(preload)
    )
    return ran.stdout.strip()


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A directory whose jemalloc is none."""
    (tmp_path / JEMALLOC).write_text("not a library")
    return tmp_path


def test_the_command_gets_jemalloc_and_the_settings(jemalloc: str) -> None:
    assert seen().items() >= {"allocator": "jemalloc", "LD_PRELOAD": JEMALLOC, "MALLOC_CONF": "thp:never"}.items()


def test_children_of_the_command_inherit_it(jemalloc: str) -> None:
    ran = run("sh", "-c", f"{shlex.join(PROGRAM)}; exit 7")
    assert json.loads(ran.stdout)["allocator"] == "jemalloc"
    assert ran.returncode == 7


def test_what_is_preloaded_already_stays_in_front(jemalloc: str) -> None:
    libm = ctypes.util.find_library("m")
    assert libm is not None
    assert seen(env={"LD_PRELOAD": libm})["LD_PRELOAD"] == f"{libm}:{JEMALLOC}"


def test_a_jemalloc_that_is_preloaded_already_is_not_added_again(jemalloc: str) -> None:
    assert seen(env={"LD_PRELOAD": jemalloc})["LD_PRELOAD"] == jemalloc
    assert seen(env={"LD_PRELOAD": JEMALLOC})["LD_PRELOAD"] == JEMALLOC


def test_settings_of_the_user_win_over_ours_and_the_option_over_both(jemalloc: str) -> None:
    user = {"MALLOC_CONF": "narenas:2"}
    assert seen(env=user)["MALLOC_CONF"] == "narenas:2"
    assert seen("--malloc-conf", "narenas:3", env=user)["MALLOC_CONF"] == "narenas:3"


def test_settings_that_jemalloc_refuses_are_bad_input(jemalloc: str) -> None:
    ran = run("--malloc-conf", "nonsense:1", "--", "true")
    assert ran.returncode == 2
    assert ran.stderr.startswith("resource-monitor: --malloc-conf 'nonsense:1': jemalloc says 'Invalid conf pair")


def test_settings_that_an_old_jemalloc_does_not_know_are_left_out(jemalloc: str) -> None:
    ran = run_changed("run._SETTINGS = 'unknown:1'", "--", *PROGRAM)
    assert json.loads(ran.stdout).items() >= {"allocator": "jemalloc", "MALLOC_CONF": None}.items()
    assert ran.stderr == ""


def test_off_leaves_everything_as_it_is() -> None:
    assert seen("--preload", "off").items() >= {"allocator": "glibc", "LD_PRELOAD": None, "MALLOC_CONF": None}.items()


def test_any_library_can_be_named(jemalloc: str) -> None:
    assert seen("--preload", jemalloc)["LD_PRELOAD"] == jemalloc
    mimalloc = preloaded("mimalloc")["LD_PRELOAD"]
    assert seen("--preload", mimalloc).items() >= {"allocator": "mimalloc", "MALLOC_CONF": None}.items()


def test_a_relative_path_holds_wherever_the_command_goes(jemalloc: str) -> None:
    assert seen("--preload", os.path.relpath(jemalloc))["LD_PRELOAD"] == jemalloc


def test_signals_that_python_ignores_are_restored(jemalloc: str) -> None:
    """``resource-monitor run -- yes | head`` would go on for ever."""
    ran = subprocess.run(
        ["bash", "-c", f"{shlex.join([*COMMAND, '--', 'yes'])} | head -1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(None),
        timeout=TIMEOUT,
    )
    assert (ran.stdout, ran.returncode, ran.stderr) == ("y\n", 128 + 13, "")


def test_a_library_that_does_not_serve_malloc_is_bad_input() -> None:
    libm = ctypes.util.find_library("m")
    assert libm is not None
    ran = run("--preload", libm, "--", "true")
    assert ran.returncode == 2
    assert f"{libm!r} cannot be preloaded: malloc comes from /" in ran.stderr


def test_a_file_that_is_no_library_is_bad_input(broken: Path) -> None:
    ran = run("--preload", str(broken / JEMALLOC), "--", "true")
    assert ran.returncode == 2
    assert "cannot be preloaded: " in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_auto_passes_over_a_broken_one(jemalloc: str, broken: Path) -> None:
    found = seen(env={"LD_LIBRARY_PATH": str(broken)})["object"]
    assert found is not None
    assert os.path.samefile(found, jemalloc)


def test_finds_one_that_the_linker_does_not_know(jemalloc: str, tmp_path: Path) -> None:
    """It has no name there but ``libjemalloc.so``, as with conda or a build of one's own."""
    link = tmp_path / "libjemalloc.so"
    link.symlink_to(jemalloc)
    nowhere_else = "preload._SONAME = 'absent'; preload.find_library = lambda name: None; preload._DIRECTORIES = ()"
    ran = run_changed(nowhere_else, "--", *PROGRAM, env={"LD_LIBRARY_PATH": str(tmp_path)})
    assert json.loads(ran.stdout).items() >= {"allocator": "jemalloc", "LD_PRELOAD": str(link)}.items()


def test_auto_goes_on_without_one() -> None:
    ran = run_changed("preload._candidates = lambda environment: []", "--", *PROGRAM)
    assert json.loads(ran.stdout).items() >= {"allocator": "glibc", "MALLOC_CONF": None}.items()
    assert ran.stderr.startswith(
        "resource-monitor: note: no jemalloc that can be preloaded was found, going on without"
    )


def test_a_command_that_is_not_there_is_status_127() -> None:
    ran = run("--preload", "off", "no-such-command")
    assert ran.returncode == 127
    assert ran.stderr == (
        "resource-monitor: 'no-such-command' was not found; give its path, or a name that is on PATH\n"
    )


def test_one_that_cannot_be_executed_is_status_126(tmp_path: Path) -> None:
    ran = run("--preload", "off", str(tmp_path))
    assert ran.returncode == 126
    assert ran.stderr == f"resource-monitor: {str(tmp_path)!r} cannot be executed: Permission denied\n"


def test_options_of_the_command_are_its_own() -> None:
    assert run("--preload", "off", "--", "echo", "--print", "--", "-x").stdout == "--print -- -x\n"
    assert run("--preload", "off", "echo", "--print").stdout == "--print\n"


def test_what_it_prints_can_be_evaluated(jemalloc: str) -> None:
    printed = run("--print", "--", *PROGRAM)
    assert printed.stdout.startswith(f"MALLOC_CONF=thp:never LD_PRELOAD={JEMALLOC} ")
    ran = subprocess.run(["sh", "-c", 'eval "$1"', "sh", printed.stdout], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout)["allocator"] == "jemalloc"


def test_without_a_command_it_prints_what_a_shell_exports(jemalloc: str) -> None:
    assert run("--print").stdout == f"export MALLOC_CONF=thp:never LD_PRELOAD={JEMALLOC}\n"
    assert run("--print", "--preload", "off").stdout == ":\n"
