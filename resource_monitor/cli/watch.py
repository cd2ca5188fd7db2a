"""``resource-monitor watch``: what is left of the limit that bites first, over time, until interrupted.

Owns time and the terminal; ``watched`` samples, ``chart`` draws.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

from resource_monitor.cli.chart import figures, frame, heading, kills
from resource_monitor.cli.command import FAILED, add_limit, add_pid, declared_limit
from resource_monitor.cli.process import require_process
from resource_monitor.cli.text import Line, Span, paragraph, width, write
from resource_monitor.cli.watched import Sample, Watched

# More columns than any terminal has.
_KEPT = 1000


class Watch:
    """A chart on a terminal where rich is installed, else a line a sample. ``root`` stands in for ``/``.

    Exit status 0 when interrupted and when the process that was watched ends, 1 if the OOM killer struck in its cgroup.
    """

    help = "a live chart of what is left of the limit that bites first, and of what takes it up"

    def __init__(self, root: str = "/") -> None:
        self._root = root

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        add_pid(parser)
        add_limit(parser)
        parser.add_argument(
            "--interval", type=_seconds, default=1.0, metavar="SECONDS", help="time between samples (default: 1)"
        )
        parser.add_argument("--count", type=_number, metavar="N", help="end after N samples")

    def run(self, arguments: argparse.Namespace) -> int:
        require_process(arguments.pid, self._root)
        watched = Watched(arguments.pid, declared_limit(arguments), self._root)
        samples = partial(_samples, watched, arguments.count)
        try:
            if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
                _print(watched.name, samples, arguments.interval)
            elif importlib.util.find_spec("rich") is None:
                sys.stderr.write("resource-monitor: note: install rich for a live chart in place of lines\n")
                _print(watched.name, samples, arguments.interval)
            else:
                _draw(watched.name, samples, arguments.interval)
        except KeyboardInterrupt:
            return 0
        if watched.alive():
            return 0
        struck = watched.kills()
        since = f"; {kills(struck)} in its cgroup since" if struck else ""
        write(paragraph(f"{watched.name} has ended{since}.", width()))
        return FAILED if struck else 0


def _samples(watched: Watched, count: int | None, wait: Callable[[], None]) -> Iterator[Sample]:
    """``count`` samples, as long as the process lives."""
    taken = 0
    while (sample := watched.sample()) is not None:
        yield sample
        taken += 1
        if taken == count:
            return
        wait()


_Samples = Callable[[Callable[[], None]], Iterator[Sample]]


def _print(name: str, samples: _Samples, interval: float) -> None:
    """A line a sample, and one more whenever another limit becomes the one that bites first."""
    said = ""
    for sample in samples(lambda: time.sleep(interval)):
        first = sample.explanation.first
        title = f"{name}: {sample.explanation.sentence}" if first is None else heading(name, first, width())
        lines: list[Line] = [[Span(title, "bold")]] if title != said else []
        if first is not None:
            lines.append([Span(f"{time.strftime('%H:%M:%S')}  {figures(first, sample.kills)}")])
        write(lines)
        sys.stdout.flush()
        said = title


def _draw(name: str, samples: _Samples, interval: float) -> None:
    """The chart on the terminal's other screen, drawn anew at every sample and whenever the terminal's size changes."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    console = Console()
    kept: deque[Sample] = deque(maxlen=_KEPT)

    def draw() -> None:
        lines = frame(name, list(kept), interval, *console.size)
        live.update(Group(*(Text.assemble(*line, no_wrap=True, overflow="crop") for line in lines)), refresh=True)

    def wait() -> None:
        until = time.monotonic() + interval
        while (left := until - time.monotonic()) > 0:
            if signal.sigtimedwait({signal.SIGWINCH}, left):
                draw()

    with _orderly_end(), Live(console=console, screen=True, auto_refresh=False) as live:
        for sample in samples(wait):
            kept.append(sample)
            draw()


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Lets signals that would end the process leave the other screen first, and keeps SIGWINCH for who waits for it."""

    def leave(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    ending = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, leave) for number in ending]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in zip(ending, before, strict=True):
            signal.signal(number, handler)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.01 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no interval; give seconds between 0.01 and 86400")
    return value


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of samples; give a positive number")
    return int(text)
