import pytest
from machine import MIB, Machine

from resource_monitor.cli.chart import frame
from resource_monitor.cli.text import Line
from resource_monitor.cli.watched import Sample
from resource_monitor.explanation import explain

WIDTH, HEIGHT = 80, 24


def sample(machine: Machine, used: int, *, kills: int = 0, limit: int = 256 * MIB, **stat: int) -> Sample:
    machine.container(limit=limit, usage=used, **stat)
    return Sample(explain(root=str(machine)), kills)


def drawn(samples: list[Sample], width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    return [text(line) for line in frame("process 7 (uvicorn)", samples, 1.0, width, height)]


def text(line: Line) -> str:
    return "".join(span.text for span in line)


def columns(samples: list[Sample]) -> list[str]:
    """The columns of the chart that belong to ``samples``, each from bottom to top."""
    rows = [line for line in drawn(samples) if line[11:12] in ("┤", "│")]
    return ["".join(row[at] for row in reversed(rows)) for at in range(WIDTH - len(samples), WIDTH)]


def test_what_is_in_use_stands_at_the_bottom_and_what_is_reclaimable_on_top_of_it(machine: Machine) -> None:
    empty, full, cache = columns(
        [
            sample(machine, 0),
            sample(machine, 256 * MIB),
            sample(machine, 256 * MIB, inactive_file=256 * MIB),
        ]
    )
    rows = len(empty)
    assert (empty, full, cache) == (" " * rows, "█" * rows, "░" * rows)
    (mixed,) = columns([sample(machine, 192 * MIB, inactive_file=128 * MIB)])
    assert mixed.count("█") == rows // 4
    assert mixed.rstrip()[-1] == "░"
    assert mixed.endswith(" " * (rows // 4))


def test_eighths_of_a_row_are_seen(machine: Machine) -> None:
    rows = len(columns([sample(machine, 0)])[0])
    (column,) = columns([sample(machine, 256 * MIB * 3 // 2 // rows)])
    assert column.rstrip() == "█▄"


def test_time_before_the_first_sample_is_left_empty(machine: Machine) -> None:
    lines = drawn([sample(machine, 256 * MIB)])
    assert all(set(line[12:-1]) == {" "} for line in lines if line[11:12] in ("┤", "│"))


def test_a_sample_without_the_limit_of_now_is_left_empty(machine: Machine) -> None:
    host = Sample(explain(root=str(machine)), 0)
    before, _ = columns([host, sample(machine, 256 * MIB)])
    assert not before.strip()


def test_the_figures_are_those_of_the_limit_that_bites_first(machine: Machine) -> None:
    title, figures, *_ = drawn([sample(machine, 100 * MIB, inactive_file=20 * MIB)])
    assert title == "process 7 (uvicorn): cgroup v2 of 256.0 MiB (/sys/fs/cgroup/memory.max)"
    assert figures == "available  176.0 MiB  in use   80.0 MiB  reclaimable   20.0 MiB"


def test_a_long_path_is_shortened_and_nothing_else(machine: Machine) -> None:
    machine.v2("/" + "x" * 200)
    machine.v2_level("/sys/fs/cgroup/" + "x" * 200, limit=256 * MIB, usage=0)
    title = drawn([Sample(explain(root=str(machine)), 0)])[0]
    assert len(title) == WIDTH
    assert title.startswith("process 7 (uvicorn): cgroup v2 of 256.0 MiB (/sys/")
    assert title.endswith("xx/memory.max)")


@pytest.mark.parametrize(("kills", "said"), [(0, ""), (1, "  1 OOM kill"), (2, "  2 OOM kills")])
def test_kills_are_counted(machine: Machine, kills: int, said: str) -> None:
    assert drawn([sample(machine, 0, kills=kills)])[1].endswith("0 B" + said)


def test_the_axis_says_how_far_back_it_goes(machine: Machine) -> None:
    assert [line for line in drawn([sample(machine, 0)]) if line.split() == ["-67", "s", "now"] and len(line) == WIDTH]


def test_the_other_limits_stand_below(machine: Machine) -> None:
    assert drawn([sample(machine, 0)])[-1].split()[:2] == ["host", "memory"]


@pytest.mark.parametrize(("width", "height"), [(200, 50), (80, 24), (40, 10), (20, 5), (12, 2), (5, 1)])
def test_fits_terminals_of_every_size(machine: Machine, width: int, height: int) -> None:
    lines = drawn([sample(machine, 100 * MIB)] * 300, width, height)
    assert len(lines) <= height
    assert len(lines[0]) <= width
    if height >= 10:
        assert [line for line in lines if "█" in line and len(line) == width]


def test_says_so_when_nothing_limits(machine: Machine) -> None:
    machine.path("/proc/meminfo").unlink()
    assert drawn([Sample(explain(root=str(machine)), 0)]) == [
        "process 7 (uvicorn): Nothing limits the memory of this process."
    ]
