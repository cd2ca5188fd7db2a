"""The ``resource-monitor`` command: picks the subcommand, turns every failure into one sentence and an exit status.

Each subcommand is a class in a module of its own with the two methods of :class:`~.command.Command`.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from resource_monitor._version import __version__
from resource_monitor.cli.check import Check
from resource_monitor.cli.command import BAD_INPUT, FAILED, Command, CommandError
from resource_monitor.cli.explain import Explain
from resource_monitor.cli.run import Run
from resource_monitor.cli.show import Show
from resource_monitor.cli.watch import Watch
from resource_monitor.errors import ConfigurationError, ResourceMonitorError

_COMMANDS: dict[str, Command] = {
    "show": Show(),
    "explain": Explain(),
    "watch": Watch(),
    "check": Check(),
    "run": Run(),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand in ``argv`` (default: ``sys.argv``) and return the exit status."""
    _prepare_output()
    try:
        return _run(argv)
    except CommandError as error:
        return _fail(str(error), error.exit_code)
    except ConfigurationError as error:
        return _fail(str(error), BAD_INPUT)
    except ResourceMonitorError as error:
        return _fail(str(error), FAILED)
    except BrokenPipeError:
        _abandon_output()
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OSError as error:
        _abandon_output()
        return _fail(f"{error.filename or 'the output'}: {error.strerror or error}", FAILED)


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit:  # --help or --version, which is all there is to say
        status = 0
    else:
        status = _COMMANDS[arguments.command].run(arguments)
    sys.stdout.flush()
    return status


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message}; see {self.prog} --help", BAD_INPUT)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="resource-monitor",
        description="What may a process still use here, which limit bites first, and what then?",
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in _COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.help, description=command.help)
        command.prepare_parser(subparser)
    return parser


def _prepare_output() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # whoever started us has closed it
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (for as long as we live)
        elif isinstance(stream, io.TextIOWrapper):
            # names of cgroups can hold any bytes, and a terminal need not know them
            stream.reconfigure(errors="replace")


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"resource-monitor: {message}\n")
    return status


def _abandon_output() -> None:
    """Leave nothing for the interpreter to flush into a closed pipe or a full disk when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
