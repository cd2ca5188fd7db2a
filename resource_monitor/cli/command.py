"""What every subcommand is, the error it may raise, and the options that several of them take."""

from __future__ import annotations

import argparse
import os
from typing import Protocol

from resource_monitor.errors import ConfigurationError, ResourceMonitorError
from resource_monitor.units import parse_size

FAILED = 1
BAD_INPUT = 2


class CommandError(ResourceMonitorError):
    """A subcommand cannot do what was asked; the message is one sentence, ``exit_code`` the process's status."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Command(Protocol):
    """One subcommand; ``help`` is the sentence that says what it is for."""

    help: str

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        """Add its options to ``parser``."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it and return the exit status. Raises :class:`ResourceMonitorError`."""


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, figures in bytes")


def add_pid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pid", type=process_id, metavar="N", help="another process's limits instead of this command's own"
    )


def add_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit",
        type=size,
        metavar="SIZE",
        help="a limit declared on resident memory, such as 256MiB (default: $RESOURCE_MONITOR_LIMIT)",
    )


def declared_limit(arguments: argparse.Namespace) -> int | None:
    """What ``--limit`` or else the environment declares, bytes. Raises :class:`CommandError`."""
    declared: int | None = arguments.limit
    text = os.environ.get("RESOURCE_MONITOR_LIMIT")
    if declared is None and text:
        try:
            declared = size(text)
        except argparse.ArgumentTypeError as error:
            raise CommandError(f"RESOURCE_MONITOR_LIMIT: {error}", BAD_INPUT) from None
    return declared


def process_id(text: str) -> int:
    """A process id from the command line."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no process id, which is a positive number")
    return int(text)


def size(text: str) -> int:
    """Bytes from the command line, more than none."""
    try:
        value = parse_size(text)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} leaves no memory at all; give the real limit")
    return value
