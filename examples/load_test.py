"""Load-tests servers one after another and compares them: a table, and an HTML report with a chart.

    python examples/load_test.py --target unprotected=http://127.0.0.1:8001 --target protected=http://127.0.0.1:8002

The servers are the sample app, or anything that answers /healthz and /stats as it does. Ends by itself: rate and
duration are bounded, and for a server that is neither on this machine nor a container beside us bounded tightly.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from load import SCENARIOS, NeverReady, Outcome, Record, Scenario, run
from results import table, write_html
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

MOST_RATE, MOST_SECONDS = 2000.0, 300.0
# For a server of which we cannot know whose it is: what a page with some pictures asks of it.
MOST_RATE_ELSEWHERE, MOST_SECONDS_ELSEWHERE = 20.0, 10.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--target",
        action="append",
        required=True,
        type=parse_target,
        metavar="LABEL=URL",
        help="a server to load, by its own label; may be repeated",
    )
    parser.add_argument(
        "--require", metavar="LABEL", help="exit with 1 unless this target was never killed and had good answers"
    )
    add_load_options(parser)
    options = parser.parse_args(argv)
    labels = [label for label, _ in options.target]
    if len(set(labels)) < len(labels):
        parser.error(f"the labels {', '.join(labels)} are not all different; give each target its own.")
    if options.require and options.require not in labels:
        parser.error(f"--require {options.require} names no target; give one of {', '.join(labels)}.")
    for _, url in options.target:
        if not nearby(url) and (options.rate > MOST_RATE_ELSEWHERE or options.seconds > MOST_SECONDS_ELSEWHERE):
            parser.error(
                f"{url} is neither on this machine nor a container beside it; give at most --rate "
                f"{MOST_RATE_ELSEWHERE:g} and --seconds {MOST_SECONDS_ELSEWHERE:g} for it."
            )
    console = Console()
    scenario = SCENARIOS[options.scenario]
    records: list[Record] = []
    for label, url in options.target:
        try:
            records.append(asyncio.run(attack(console, label, url, scenario, options.rate, options.seconds)))
        except NeverReady as error:
            print(error, file=sys.stderr)
            return 1
    console.print(table(records))
    write_html(options.report, records, title="Load test", setting=describe(scenario, options.rate, options.seconds))
    console.print(f"Report: {options.report}")
    return int(any(record.label == options.require and not survived(record) for record in records))


def add_load_options(parser: argparse.ArgumentParser) -> None:
    """What the demo and the load test have in common; LOAD_RATE and LOAD_SECONDS stand in for the two figures."""
    parser.add_argument(
        "--scenario",
        choices=SCENARIOS,
        default="burst",
        help="; ".join(f"{name}: {scenario.about}" for name, scenario in SCENARIOS.items()) + " (default: burst)",
    )
    parser.add_argument(
        "--rate",
        type=_bounded("rate", MOST_RATE),
        default=os.environ.get("LOAD_RATE", "300"),
        help="requests a second (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=_bounded("seconds", MOST_SECONDS),
        default=os.environ.get("LOAD_SECONDS", "8"),
        help="how long requests arrive, for each server (default: %(default)s)",
    )
    parser.add_argument(
        "--report", type=Path, default=Path("report/load_test.html"), help="HTML file to write (default: %(default)s)"
    )


async def attack(console: Console, label: str, url: str, scenario: Scenario, rate: float, seconds: float) -> Record:
    """Load one server while a bar shows how far it is and how it fares."""
    with Progress(
        TextColumn("{task.description:>12}"),
        BarColumn(),
        TextColumn("{task.fields[tally]}"),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        bar = progress.add_task(label, total=rate * seconds, tally="")

        def show(record: Record) -> None:
            tally = (
                f"good {record.count(Outcome.GOOD)}  shed {record.count(Outcome.SHED)}  "
                f"failed {record.count(Outcome.FAILED)}  kills {len(record.kills)}"
            )
            progress.update(bar, completed=len(record.finished), tally=tally)

        record = await run(label, url, scenario, rate=rate, seconds=seconds, progress=show)
        show(record)
        progress.update(bar, total=len(record.finished))
    return record


def describe(scenario: Scenario, rate: float, seconds: float) -> str:
    return f"{rate:g} requests a second for {seconds:g} s, whether answered or not; each: {scenario.about}."


def survived(record: Record) -> bool:
    """Never killed, and of use."""
    return not record.kills and record.count(Outcome.GOOD) > 0


def nearby(url: str) -> bool:
    """Whether the server is on this machine, or named as Compose names a service: one word without a dot."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return "." not in host and host[:1].isalpha()  # 134744072 is a dotless way to write 8.8.8.8


def parse_target(text: str) -> tuple[str, str]:
    label, equals, url = text.partition("=")
    if not (equals and label) or urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise argparse.ArgumentTypeError(f"{text!r} is no target; write it as label=http://host:port.")
    return label, url


def _bounded(name: str, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value <= most:  # also false for nan
            raise argparse.ArgumentTypeError(f"{name} {text!r} is out of bounds; give a number up to {most:g}.")
        return value

    return parse


if __name__ == "__main__":
    sys.exit(main())
