"""What is said of loaded servers: a pair in which the wrong answers came must not become a ratio."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.cost import wrk
from benchmarks.cost.servers import KINDS, cpu_of, running
from benchmarks.cost.wrk import Load, Pairs, in_pairs, load

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
UVICORN = next(kind for kind in KINDS if kind.name == "uvicorn")


def answering(monkeypatch: pytest.MonkeyPatch, **by_server: Load) -> None:
    monkeypatch.setattr(wrk, "load", lambda seconds, body, *servers: [by_server[server] for server in servers])


class Server(str):
    """As much of a running one as a pair asks for."""

    kind = UVICORN


BARE, OURS = Server("bare"), Server("ours")


def test_a_ratio_is_that_of_one_time():
    pairs = Pairs(bare=[100.0, 50.0, 10.0, 200.0, 100.0], ours=[90.0, 50.0, 12.0, 160.0, 95.0])
    assert pairs.ratios == [0.9, 1.0, 1.2, 0.8, 0.95]
    assert pairs.quartiles == (0.9, 0.95, 1.0)


def test_each_turn_of_both_is_kept_but_the_first(monkeypatch: pytest.MonkeyPatch):
    answering(monkeypatch, bare=Load(10, 0, 0, 100.0), ours=Load(10, 10, 0, 150.0))
    assert in_pairs(BARE, OURS, 3, refused=True) == Pairs([100.0] * 3, [150.0] * 3)


@pytest.mark.parametrize(
    ("bare", "ours", "refused"),
    [
        (Load(10, 0, 0, 1.0), Load(10, 9, 0, 1.0), True),
        (Load(10, 1, 0, 1.0), Load(10, 10, 0, 1.0), True),
        (Load(10, 0, 0, 1.0), Load(10, 1, 0, 1.0), False),
        (Load(10, 0, 0, 1.0), Load(10, 0, 1, 1.0), False),
        (Load(0, 0, 0, 0.0), Load(10, 0, 0, 1.0), False),
    ],
)
def test_other_answers_than_those_that_are_compared_are_an_error(
    monkeypatch: pytest.MonkeyPatch, bare: Load, ours: Load, refused: bool
):
    answering(monkeypatch, bare=bare, ours=ours)
    with pytest.raises(RuntimeError, match="uvicorn was to refuse"):
        in_pairs(BARE, OURS, 1, refused=refused)


def test_without_wrk_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^wrk is not installed, .* install it \(Debian's package is wrk\)\.$"):
        load(1, 0, BARE)  # type: ignore[arg-type]


def test_a_server_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch):
    with (
        pytest.raises(RuntimeError, match=r"(?s)^uvicorn did not start: .*no_such_app"),
        running(UVICORN, "no_such_app"),
    ):
        pass


def test_the_time_of_workers_is_their_servers():
    [gunicorn] = [kind for kind in KINDS if kind.name.startswith("gunicorn")]
    with running(gunicorn, "") as (server,):
        assert server.status() == 200
        assert server.cpu() > cpu_of(server.process.pid) > 0


@needs_wrk
@pytest.mark.parametrize("body", [0, 1 << 16])
def test_a_refusing_server_refuses_all_and_a_bare_one_nothing(body: int):
    with running(UVICORN, "", "_refusing") as (bare, ours):
        assert (bare.status(), ours.status()) == (200, 200)
        ours.shrink()
        pairs = in_pairs(bare, ours, 1, body=body, refused=True)
        assert ours.status() == 503
        assert len(pairs.ratios) == 1
