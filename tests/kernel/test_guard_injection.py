"""Wherever an allocation is refused, the app goes on: no crash, no leak, no stuck request; under sanitizers too."""

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from machine import MIB
from programs import TIMEOUT, MakeCgroup, environment

HERE = Path(__file__).parent
PACKAGE = HERE.parent.parent / "resource_monitor"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def check(make: MakeCgroup, *arguments: int, env: dict[str, str]) -> None:
    cgroup = make(2048 * MIB)
    done = cgroup.run([sys.executable, HERE / "refuse_every.py", *arguments], env=environment(env), timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    outcomes, refusals, lost, growth = json.loads(done.stdout)
    assert refusals > 50
    # what is refused in a cleanup or while a refusal is made reaches the server, which answers 500 and closes
    assert set(outcomes) <= {"200", "503", "MemoryError", "SystemError"}
    assert lost >= outcomes["503"] > 20
    assert growth < 8 * MIB


@pytest.mark.parametrize("mode", ["pymalloc", "malloc"])
def test_an_app_outlives_the_refusal_of_every_nth_allocation(child_cgroup: MakeCgroup, mode: str) -> None:
    check(child_cgroup, 1, 200, 1, env={"PYTHONMALLOC": mode})


@pytest.fixture
def sanitized(tmp_path: Path) -> dict[str, str]:
    """An environment in which the package's C is built with the address and undefined behaviour sanitizers."""
    shutil.copytree(PACKAGE, tmp_path / "resource_monitor", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    native = tmp_path / "resource_monitor/_native"
    build = "import runpy; runpy.run_path('resource_monitor/_native/build.py')['ffibuilder'].emit_c_code('generated.c')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    include = sysconfig.get_path("include")
    sources = [tmp_path / "generated.c", *native.glob("*.c")]
    compiler = ["cc", "-shared", "-fPIC", "-g", "-O1", "-std=gnu11", *SANITIZE, f"-I{include}", f"-I{native}"]
    subprocess.run([*compiler, *sources, "-o", native / f"_probe{suffix}", "-ldl"], check=True)
    subprocess.run([*compiler, *native.glob("turn/*.c"), "-o", native / f"_turn{suffix}"], check=True)
    libraries = [
        subprocess.run(["cc", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return {
        "PYTHONPATH": str(tmp_path),
        "LD_PRELOAD": " ".join(libraries),
        # what CPython never frees at its end is not ours; what is kept to recognise late use counts as growth
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:quarantine_size_mb=1",
        "PYTHONMALLOC": "malloc",
    }


def test_the_sanitizers_find_nothing(child_cgroup: MakeCgroup, sanitized: dict[str, str]) -> None:
    where = "import resource_monitor._native._probe as probe; print(probe.__file__)"
    found = subprocess.run(
        [sys.executable, "-P", "-c", where], env=environment(sanitized), check=True, capture_output=True, text=True
    )
    assert found.stdout.startswith(sanitized["PYTHONPATH"])
    check(child_cgroup, 1, 200, 7, env=sanitized)
