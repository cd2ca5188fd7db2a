"""From what happened in a run to its row of figures. Pure: no process, no clock, no file but the rows' own.

What counts: a *good* answer is a complete 200 that the client read within its patience; only those that arrived while
the load ran count for ``good_per_s``, so that a queue drained afterwards adds nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.overload.load import Load, Outcome
from benchmarks.overload.scenarios import Waves

QUICK = 0.1
"""Seconds within which an answer is quick: people take it for immediate (Nielsen, Usability Engineering, 1993)."""
FROZEN_AFTER = 2.0
"""Seconds without any answer, while requests wait, after which a server counts as frozen."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Figures of one kind of requests within a run; seconds. ``quick`` is the share with a good answer in 0.1 s."""

    offered: int
    good: int
    good_per_s: float
    quick: float
    p50_s: float | None
    p99_s: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """One run. Numbers of requests unless the name says seconds (``_s``), per second (``_per_s``) or bytes.

    ``kills`` are processes killed by the kernel for want of memory, ``crashes`` other ends, ``frozen`` the silences of
    more than two seconds. ``failed`` are requests with no answer or a wrong one: ``refused`` connections, ``resets``,
    ``timeouts`` and other ``errors``. ``wasted`` were let in and then brought no good answer; ``late_admitted`` and
    ``late_wasted`` are of the second half of the run alone. ``last_wave_good_per_s`` is of the second half of the last
    wave, where the load came in waves. ``refusal_read`` is the share of refused clients that could read their refusal,
    where nobody was killed. ``client_late_s`` is by how much the client sent its requests too late at the 99th
    percentile.
    """

    strategy: str
    scenario: str
    seed: int
    rate: float
    seconds: float
    limit_concurrency: int | None
    kills: int
    crashes: int
    frozen: int
    longest_silence_s: float
    offered: int
    good: int
    good_per_s: float
    shed: int
    shed_per_s: float
    failed: int
    refused: int
    resets: int
    timeouts: int
    errors: int
    started: int
    completed: int
    wasted: int
    late_admitted: int
    late_wasted: int
    last_wave_good_per_s: float | None
    refusal_read: float | None
    p50_s: float | None
    p99_s: float | None
    base_bytes: int
    peak_bytes: int
    limit_bytes: int
    client_late_s: float
    kinds: dict[str, Kind] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int, float, float]:
        """What makes a run the same run."""
        return self.strategy, self.scenario, self.seed, self.rate, self.seconds

    @property
    def survived(self) -> bool:
        """Whether nothing died and the server kept answering."""
        return self.deaths == 0

    @property
    def deaths(self) -> int:
        """How often something died or froze."""
        return self.kills + self.crashes + self.frozen


def percentile(values: Iterable[float], share: float) -> float | None:
    """The nearest-rank percentile, ``None`` of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def silences(outcomes: Iterable[Outcome], deaths: Iterable[float]) -> list[float]:
    """Lengths, in seconds, of the stretches in which requests waited and nothing was answered.

    A death ends a silence: a killed server is not a frozen one.
    """
    outcomes = list(outcomes)
    breaks = sorted([o.answered for o in outcomes if o.answered is not None] + list(deaths))
    lengths, position = [], 0
    for begin, end in _union((o.started, o.ended if o.answered is None else o.answered) for o in outcomes):
        start = begin
        while position < len(breaks) and breaks[position] <= end:
            if breaks[position] > start:
                lengths.append(breaks[position] - start)
                start = breaks[position]
            position += 1
        lengths.append(end - start)
    return [length for length in lengths if length > 0]


def _union(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def summarise(
    load: Load,
    *,
    strategy: str,
    scenario: str,
    seed: int,
    rate: float,
    seconds: float,
    waves: Waves | None,
    limit_concurrency: int | None,
    exits: Sequence[tuple[float, int]],
    kill_times: Sequence[float],
    oom_kills: int,
    tally: tuple[int, int],
    late_admitted: int,
    base_bytes: int,
    peak_bytes: int,
    limit_bytes: int,
) -> Row:
    """The figures of one run; ``exits`` are (seconds since the load began, return code), ``kill_times`` seconds too."""
    outcomes = load.outcomes
    good = [o for o in outcomes if o.good]
    shed = [o for o in outcomes if o.shed]
    lost = [o for o in outcomes if not o.good and not o.shed]
    errors = [o.error for o in lost]
    # The kernel's counter includes worker processes, the return code a kill that the counter of an old kernel missed.
    kills = max(oom_kills, sum(code == -9 for _, code in exits))
    silent = silences(outcomes, [*kill_times, *(at for at, _ in exits)])
    started, completed = tally
    turned_away = len(shed) + errors.count("reset")
    return Row(
        strategy=strategy,
        scenario=scenario,
        seed=seed,
        rate=rate,
        seconds=seconds,
        limit_concurrency=limit_concurrency,
        kills=kills,
        crashes=sum(code != -9 for _, code in exits),
        frozen=sum(length >= FROZEN_AFTER for length in silent),
        longest_silence_s=_round(max(silent, default=0.0)),
        offered=len(outcomes),
        good=len(good),
        good_per_s=round(_within(good, seconds) / seconds, 1),
        shed=len(shed),
        shed_per_s=round(_within(shed, seconds) / seconds, 1),
        failed=len(lost),
        refused=errors.count("refused"),
        resets=errors.count("reset"),
        timeouts=errors.count("timeout"),
        errors=errors.count(""),
        started=started,
        completed=completed,
        wasted=max(0, started - len(good)),
        late_admitted=late_admitted,
        # by when they were sent, which is when they were admitted but for the few of the moment of the middle
        late_wasted=max(0, late_admitted - sum(o.started >= seconds / 2 for o in good)),
        last_wave_good_per_s=_last_wave(good, waves) if waves else None,
        refusal_read=round(len(shed) / turned_away, 3) if shed and not kills else None,
        p50_s=_latency(good, 0.5),
        p99_s=_latency(good, 0.99),
        base_bytes=base_bytes,
        peak_bytes=peak_bytes,
        limit_bytes=limit_bytes,
        client_late_s=_round(percentile(load.lateness, 0.99) or 0.0),
        kinds={kind: _kind([o for o in outcomes if o.kind == kind], seconds) for kind in _kinds(outcomes)},
    )


def _kinds(outcomes: Iterable[Outcome]) -> list[str]:
    return sorted({o.kind for o in outcomes} - {""})


def _kind(outcomes: list[Outcome], seconds: float) -> Kind:
    good = [o for o in outcomes if o.good]
    return Kind(
        offered=len(outcomes),
        good=len(good),
        good_per_s=round(_within(good, seconds) / seconds, 1),
        quick=round(sum(o.ended - o.started <= QUICK for o in good) / len(outcomes), 4),
        p50_s=_latency(good, 0.5),
        p99_s=_latency(good, 0.99),
    )


def _last_wave(good: Iterable[Outcome], waves: Waves) -> float:
    span = waves.busy / 2
    return round(sum(waves.length - span < o.ended <= waves.length for o in good) / span, 1)


def _within(outcomes: Iterable[Outcome], seconds: float) -> int:
    return sum(o.ended <= seconds for o in outcomes)


def _latency(good: Iterable[Outcome], share: float) -> float | None:
    value = percentile((o.ended - o.started for o in good), share)
    return None if value is None else _round(value)


def _round(seconds: float) -> float:
    return round(seconds, 4)


def append(path: Path, row: Row) -> None:
    """Write one more row, as a line of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def load_rows(path: Path) -> tuple[list[Row], int]:
    """The rows in a file, of which a later one replaces an earlier one of the same run, and how many lines were passed
    over because they lack figures that rows have today."""
    rows: dict[tuple[str, str, int, float, float], Row] = {}
    outdated = 0
    for line in path.read_text().splitlines() if path.exists() else []:
        fields = json.loads(line)
        try:
            kinds = {name: Kind(**kind) for name, kind in fields["kinds"].items()}
            row = Row(**fields | {"kinds": kinds})
        except (KeyError, TypeError):
            outdated += 1
            continue
        rows[row.key] = row
    return list(rows.values()), outdated
