"""Runs a subcommand in this process, so that it can look at a machine that a directory tree stands in for."""

import argparse

from resource_monitor.cli.command import Command


def run_command(command: Command, *argv: str) -> int:
    parser = argparse.ArgumentParser()
    command.prepare_parser(parser)
    return command.run(parser.parse_args(argv))
