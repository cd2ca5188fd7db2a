"""Every limit that can be reached is reached: what was said to be available against what could really be had."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from child_cgroup import ChildCgroup
from machine import MIB
from programs import TIMEOUT, MakeCgroup, preloaded, start_python

STEP = MIB

# Tells what is available, then takes it in steps, every byte written to, and tells of each by a dot before the next
# one, so that whoever reads knows how far it came when it is killed. A block of 64 bytes less than the step fills whole
# pages together with malloc's header.
TAKER = """
    import json, os, resource, sys
    from resource_monitor import Resource, explain

    step, rlimit, value = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # whom the kernel kills in a shared cgroup is its choice: this one, please
    if rlimit:
        resource.setrlimit(getattr(resource, rlimit), (value, value))
    available = Resource.MEMORY.available()
    first = explain().first
    print(json.dumps([available, first.kind, first.value, first.consequence]), flush=True)
    blocks = [None] * 4096
    try:
        for at in range(len(blocks)):
            blocks[at] = bytearray(b"x") * (step - 64)
            os.write(1, b".")
    except MemoryError:
        blocks.clear()
        os.write(1, b"refused")
"""


@dataclass(frozen=True)
class Outcome:
    """Bytes; ``ended`` is how: ``"refused"`` with a MemoryError or ``"killed"``."""

    kind: str
    limit: int
    consequence: str
    available: int
    taken: int
    ended: str

    def __str__(self) -> str:
        error = self.available - self.taken
        return (
            f"{self.kind}: limit {self.limit / MIB:.1f} MiB, available {self.available / MIB:.1f} MiB, taken "
            f"{self.taken / MIB:.1f} MiB until {self.ended}, error {error / MIB:+.1f} MiB ({error / self.limit:+.1%})"
        )


Take = Callable[..., Outcome]


@pytest.fixture
def take(request: pytest.FixtureRequest) -> Take:
    """Take all that can be had inside a cgroup; the figures go to the report that ``--junit-xml`` writes, too."""

    def run(cgroup: ChildCgroup, *, rlimit: str = "", value: int = 0, env: dict[str, str] | None = None) -> Outcome:
        with start_python(cgroup, TAKER, STEP, rlimit, value, env=env) as process:
            try:
                out, err = process.communicate(timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert process.returncode in (0, -9), err
        first_line, _, progress = out.partition("\n")
        available, kind, limit, consequence = json.loads(first_line)
        outcome = Outcome(
            kind,
            limit,
            consequence,
            available,
            progress.count(".") * STEP,
            "killed" if process.returncode else "refused",
        )
        assert (outcome.ended == "refused") == progress.endswith("refused"), "it ended before it met a limit"
        request.node.user_properties.append(("figures", str(outcome)))
        return outcome

    return run


def assert_true(outcome: Outcome) -> None:
    assert abs(outcome.available - outcome.taken) <= max(outcome.limit // 20, 8 * MIB), str(outcome)


@pytest.mark.parametrize("limit", [128 * MIB, 256 * MIB])
@pytest.mark.parametrize("library", [None, "jemalloc"])
def test_the_limit_of_a_cgroup(child_cgroup: MakeCgroup, take: Take, limit: int, library: str | None) -> None:
    cgroup = child_cgroup(limit)
    # as `resource-monitor run` and the Dockerfile set it: a huge page is charged whole for the first byte of it
    outcome = take(cgroup, env=preloaded(library, MALLOC_CONF="thp:never") if library else None)
    assert outcome.kind == {1: "cgroup v1", 2: "cgroup v2"}[cgroup.version]
    assert outcome.limit == limit
    assert (outcome.consequence, outcome.ended, cgroup.oom_kills()) == ("kill", "killed", 1)
    assert_true(outcome)


def test_the_limit_of_a_parent_that_a_sibling_shares(child_cgroup: MakeCgroup, take: Take) -> None:
    parent = child_cgroup(256 * MIB, label="parent")
    roomy = child_cgroup(512 * MIB, label="roomy", parent=parent)
    sibling = child_cgroup(None, label="sibling", parent=parent)
    eater = start_python(sibling, "block = bytearray(b'x') * (80 << 20); print('full', flush=True); input()")
    with eater:
        try:
            assert eater.stdout is not None
            assert eater.stdout.readline() == "full\n"
            outcome = take(roomy)
        finally:
            eater.kill()
    assert outcome.limit == 256 * MIB
    assert outcome.available < 180 * MIB
    assert (outcome.consequence, outcome.ended) == ("kill", "killed")
    assert_true(outcome)


@pytest.mark.parametrize(
    ("rlimit", "kind"), [("RLIMIT_AS", "address space"), ("RLIMIT_DATA", "data segment")], ids=["as", "data"]
)
@pytest.mark.parametrize("limit", [128 * MIB, 256 * MIB])
def test_a_resource_limit(child_cgroup: MakeCgroup, take: Take, rlimit: str, kind: str, limit: int) -> None:
    outcome = take(child_cgroup(512 * MIB), rlimit=rlimit, value=limit)
    assert (outcome.kind, outcome.limit) == (kind, limit)
    assert (outcome.consequence, outcome.ended) == ("MemoryError", "refused")
    assert_true(outcome)
