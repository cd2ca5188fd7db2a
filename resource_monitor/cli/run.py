"""``resource-monitor run``: starts a command with jemalloc as its allocator.

Finding the library and trying it is ``preload``'s business.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Mapping

from resource_monitor.cli import preload
from resource_monitor.cli.command import BAD_INPUT, CommandError

# As sh, env and nohup have it (POSIX, 2.8.2 Exit Status for Commands).
_CANNOT_EXECUTE, _NOT_FOUND = 126, 127
# Where huge pages are "always", what jemalloc purges stays charged as part of them: of 150 MB in pieces of 100 kB, half
# of them freed and purged, 177 MB were charged, with thp:never 90 MB (Linux 6.1, jemalloc 5.3). Elsewhere it changes
# nothing. No other setting earned its place (benchmarks/malloc_conf.py): decay times of 0 halve the peak at twice the
# CPU time, and what they save is given back before anyone is refused anyway; two arenas and background threads leave
# 4-8 times as much held at rest.
_SETTINGS = "thp:never"


class Run:
    """Replaces itself by the command; children of the command inherit the environment."""

    help = "start a command with jemalloc preloaded, so that memory that was freed goes back to the kernel on request"

    def prepare_parser(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--preload",
            metavar="auto|PATH|off",
            default="auto",
            help="look for jemalloc and go on without where there is none (auto, the default), preload this library, "
            "or none",
        )
        parser.add_argument(
            "--malloc-conf",
            metavar="SETTINGS",
            help=f"MALLOC_CONF for jemalloc (default: what it is set to already, else {_SETTINGS})",
        )
        parser.add_argument(
            "--print",
            action="store_true",
            dest="print_only",
            help="print the variables and the command for a shell to eval instead of running it",
        )
        parser.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD…", help="the command and its arguments")

    def run(self, arguments: argparse.Namespace) -> int:
        argv = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
        if not argv and not arguments.print_only:
            raise CommandError("there is no command to run; give it after --", BAD_INPUT)
        environment = _environment(arguments.preload, arguments.malloc_conf, os.environ)
        changed = {key: value for key, value in environment.items() if os.environ.get(key) != value}
        if arguments.print_only:
            sys.stdout.write(_for_a_shell(changed, argv) + "\n")
            return 0
        return _become(argv, environment)


def _environment(wanted: str, settings: str | None, present: Mapping[str, str]) -> dict[str, str]:
    """``present`` with what the options add. Raises :class:`CommandError`."""
    given = {**present, **({} if settings is None else {"MALLOC_CONF": settings})}
    if wanted == "off":
        return given
    tried = {"MALLOC_CONF": _SETTINGS, **given}
    if wanted == "auto":
        trial = preload.find(tried)
        if trial is None:
            sys.stderr.write(
                "resource-monitor: note: no jemalloc that can be preloaded was found, going on without it; install it "
                "(apt-get install libjemalloc2) or name it with --preload PATH\n"
            )
            return given
    else:
        trial = _explicit(wanted, tried)
    if trial.complaint and settings is not None:
        raise CommandError(f"--malloc-conf {settings!r}: jemalloc says {trial.complaint!r}; see jemalloc(3)", BAD_INPUT)
    if trial.allocator == "jemalloc" and not trial.complaint:
        given.setdefault("MALLOC_CONF", _SETTINGS)
    return preload.preloading(given, trial.library)


def _explicit(wanted: str, environment: Mapping[str, str]) -> preload.Trial:
    library = os.path.abspath(wanted) if "/" in wanted else wanted
    if ":" in library or " " in library:
        raise CommandError(
            f"{wanted!r} cannot be preloaded: LD_PRELOAD separates by colons and spaces; link it to another name",
            BAD_INPUT,
        )
    trial = preload.attempt(library, preload.preloading(environment, library))
    if trial.problem:
        raise CommandError(
            f"{wanted!r} cannot be preloaded: {trial.problem}; give another library, or --preload auto", BAD_INPUT
        )
    return trial


def _for_a_shell(variables: Mapping[str, str], argv: list[str]) -> str:
    """Assignments in front of the command; without one exported, for the commands that follow in that shell."""
    assignments = [f"{key}={shlex.quote(value)}" for key, value in variables.items()]
    if argv:
        return " ".join([*assignments, shlex.join(argv)])
    return f"export {' '.join(assignments)}" if assignments else ":"


def _become(argv: list[str], environment: Mapping[str, str]) -> int:
    # Python ignores these two, and what is ignored stays so across exec (signal(7))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvpe(argv[0], argv, environment)
    except FileNotFoundError:
        raise CommandError(f"{argv[0]!r} was not found; give its path, or a name that is on PATH", _NOT_FOUND) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CommandError(f"{argv[0]!r} cannot be executed: {reason}", _CANNOT_EXECUTE) from None
