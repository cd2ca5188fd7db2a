"""Before and after in half a minute: the sample app under too much load, without memory backpressure and then with it.

Both run in turn under uvicorn inside the same memory limit and are started again at once when the kernel kills them.
The load comes from outside of the limit. Ends with a table, an HTML report, and status 0 if the protected app was never
killed and had good answers.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from cage import Cage, delegate, describe_limit
from chart import chart
from load import SCENARIOS, NeverReady, Record
from load_test import add_load_options, attack, describe, survived
from preload import JEMALLOC, jemalloc
from results import table, write_html
from rich.console import Console

from resource_monitor.errors import ConfigurationError
from resource_monitor.units import format_size, parse_size

APPS = {"unprotected": "unprotected", "protected": "app"}
# The interpreter with the app takes 45 MiB and the floor is 16 MiB: below this there is nothing to show.
LEAST_LIMIT = 96 << 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_load_options(parser)
    parser.set_defaults(report=Path("report/demo.html"))
    parser.add_argument(
        "--limit", type=_size, default="256MiB", help="memory for the server, such as 512MiB (default: %(default)s)"
    )
    parser.add_argument("--svg", type=Path, metavar="PATH", help="also write the chart alone")
    options = parser.parse_args()
    delegate()
    console = Console(highlight=False)
    # A terminal closed or a CI job cancelled must clean up as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))

    scenario = SCENARIOS[options.scenario]
    setting = describe(scenario, options.rate, options.seconds)
    environment = jemalloc()
    console.print(f"[bold]{setting}[/bold]")
    console.print(
        f"Allocator: {f'jemalloc ({JEMALLOC} preloaded)' if environment else 'the default; no jemalloc found'}"
    )
    records: list[Record] = []
    try:
        for label, module in APPS.items():
            with Cage(module, options.limit, environment) as cage:
                if not records:
                    console.print(f"Limit: {format_size(options.limit)}, {describe_limit(cage)}", soft_wrap=True)
                try:
                    record = asyncio.run(attack(console, label, cage.url, scenario, options.rate, options.seconds))
                except NeverReady as error:
                    print(error, cage.log(), sep="\n", file=sys.stderr)
                    return 1
                if cage.cgroup:  # the kernel's word over what /stats let us see
                    record.kills = [at - record.start for at in cage.kills]
                if cage.exits:
                    console.print(f"[red]{label}: the server ended {cage.exits} × by itself:[/red]\n{cage.log()}")
                records.append(record)
    except KeyboardInterrupt:
        print("Interrupted; the servers and their cgroups are gone.", file=sys.stderr)
        return 130
    console.print(table(records))
    setting += f" Memory limit {format_size(options.limit)}, allocator {records[-1].allocator}."
    write_html(options.report, records, title="Memory backpressure, before and after", setting=setting)
    console.print(f"Report: {options.report}")
    if options.svg:
        options.svg.parent.mkdir(parents=True, exist_ok=True)
        options.svg.write_text(chart(records))
    return 0 if survived(records[-1]) else 1


def _size(text: str) -> int:
    try:
        size = parse_size(text)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if size < LEAST_LIMIT:
        raise argparse.ArgumentTypeError(f"{text!r} is too little; give at least {format_size(LEAST_LIMIT)}.")
    return size


if __name__ == "__main__":
    sys.exit(main())
