"""A guard against a slower middleware that does not time anything: it counts instructions.

    python -m benchmarks.cost.instructions [--accept]

Runs 10,000 requests of each kind under ``valgrind --tool=callgrind``, admitted without and with a body, and refused,
through the ASGI and the WSGI middleware, and compares the instructions of one with those in instructions.json, by
version of Python. Fails where one takes a tenth more; ``--accept`` writes down what it takes now.

Between the kinds the process calls ``getppid``, which has callgrind write down what it counted so far and begin anew,
so that what is counted is the requests alone. Those of the bare apps are counted as well: what they take by another
build of the same Python is taken out of the comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from resource_monitor import MemoryMonitor
from resource_monitor.middleware import MemoryBackpressureMiddleware, WSGIMemoryBackpressureMiddleware

ACCEPTED = Path(__file__).with_name("instructions.json")
REQUESTS = 10_000
MORE = 0.10
"""The part by which a kind may exceed what was accepted."""

KINDS = (
    *("asgi bare", "asgi admitted", "asgi with a body", "asgi refused"),
    *("wsgi bare", "wsgi admitted", "wsgi with a body", "wsgi refused"),
)

_WARM_UP = 500
_TURN = 50
# There is room for everything, or the floor is just below it and leaves room for nothing.
_LIMIT, _FULL = "1GiB", "1023MiB"
_BODY = b"x" * 1000

Counts = dict[str, float]
"""Instructions a request by kind."""


class CannotCount(Exception):
    """Why nothing was counted."""


# --- comparing ---


def parse(dumps: Iterator[str]) -> list[int]:
    """The instructions in the texts of callgrind's dumps, in the order in which they were written."""
    counts = {}
    for dump in dumps:
        part = re.search(r"^part: (\d+)$", dump, re.MULTILINE)
        total = re.search(r"^(?:totals|summary): (\d+)", dump, re.MULTILINE)
        if part is None or total is None:
            raise CannotCount(
                "A file that callgrind wrote has no part or no total; callgrind 3.15 to 3.26 writes both."
            )
        counts[int(part[1])] = int(total[1])
    return [counts[part] for part in sorted(counts)]


def compare(counts: Mapping[str, float], accepted: Mapping[str, float]) -> list[str]:
    """A sentence for each kind that takes more than was ``accepted`` for it."""
    problems = []
    for kind, count in counts.items():
        bare = f"{kind.partition(' ')[0]} bare"
        if kind == bare:
            continue
        if kind not in accepted:
            problems.append(f"{kind}: nothing was accepted for it yet; do so with --accept.")
            continue
        expected = accepted[kind] * counts[bare] / accepted[bare]
        if count > expected * (1 + MORE):
            problems.append(
                f"{kind}: {count:,.0f} instructions a request, {count / expected - 1:+.1%} on the {expected:,.0f} that "
                "were accepted; make it cheaper, or accept it with --accept and say why."
            )
    return problems


def load(path: Path, version: str) -> Counts | None:
    """What was accepted for a version of Python, ``None`` where nothing was."""
    return json.loads(path.read_text()).get(version) if path.exists() else None


def accept(path: Path, version: str, counts: Counts) -> None:
    """Write ``counts`` down for a version of Python."""
    known = json.loads(path.read_text()) if path.exists() else {}
    known[version] = {kind: round(count) for kind, count in counts.items()}
    path.write_text(json.dumps(dict(sorted(known.items())), indent=2) + "\n")


# --- counting ---


def count(requests: int = REQUESTS) -> Counts:
    """Count all kinds in one process under callgrind. Raises :class:`CannotCount`."""
    with tempfile.TemporaryDirectory(prefix="callgrind-") as directory:
        valgrind = ["valgrind", "--tool=callgrind", "--dump-before=getppid", f"--callgrind-out-file={directory}/out"]
        argv = [*valgrind, sys.executable, "-m", "benchmarks.cost.instructions", "--work", str(requests)]
        env = {name: value for name, value in os.environ.items() if not name.startswith("RESOURCE_MONITOR_")}
        try:
            done = subprocess.run(argv, env=env | {"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise CannotCount(
                "There is no valgrind here to count instructions with; install it (Debian: valgrind)."
            ) from None
        if done.returncode != 0:
            raise CannotCount(f"The process under valgrind failed with status {done.returncode}: {done.stderr.strip()}")
        dumps = (path.read_text() for path in Path(directory).iterdir())
        # what was counted up to a mark is what came before it: start-up, a kind, what prepared the next, and so on
        counts = parse(dumps)[1::2]
    if len(counts) < len(KINDS):
        raise CannotCount(
            f"callgrind wrote down {len(counts)} of {len(KINDS)} kinds; getppid of the C library has to be seen."
        )
    return {kind: total / requests for kind, total in zip(KINDS, counts, strict=False)}


# --- under callgrind ---


async def _app(scope: Any, receive: Any, send: Any) -> None:
    if scope["method"] == "POST":
        await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def _wsgi_app(environ: Any, start_response: Any) -> list[bytes]:
    if environ["REQUEST_METHOD"] == "POST":
        environ["wsgi.input"].read(len(_BODY))
    start_response("200 OK", [])
    return [b"hello"]


async def _receive() -> Any:
    return {"type": "http.request", "body": _BODY}


async def _send(message: Any) -> None:
    pass


def _start_response(status: str, headers: Any, exc_info: Any = None) -> None:
    pass


def _asgi(app: Any, requests: int, *, body: bool) -> None:
    method, headers = ("POST", [(b"content-length", str(len(_BODY)).encode())]) if body else ("GET", [])

    async def run() -> None:
        for number in range(requests):
            scope = {"type": "http", "http_version": "1.1", "method": method, "path": "/items", "headers": headers}
            await app(scope, _receive, _send)
            if number % _TURN == 0:
                await asyncio.sleep(0)

    asyncio.run(run())


def _wsgi(app: Any, requests: int, *, body: bool) -> None:
    more = {"CONTENT_LENGTH": str(len(_BODY)), "wsgi.input": io.BytesIO(_BODY)} if body else {}
    for _ in range(requests):
        environ = {"REQUEST_METHOD": "POST" if body else "GET", "PATH_INFO": "/items", "SCRIPT_NAME": "", **more}
        pieces = app(environ, _start_response)
        for _ in pieces:
            pass
        if hasattr(pieces, "close"):
            pieces.close()


def _room() -> MemoryMonitor:
    """Of each middleware its own: with that of the process it would tell other workers what it does wherever a cgroup
    limits this process, and take more instructions there than elsewhere."""
    return MemoryMonitor(limit=_LIMIT)


def _work(requests: int) -> None:
    for call, bare, middleware in (
        (_asgi, _app, MemoryBackpressureMiddleware),
        (_wsgi, _wsgi_app, WSGIMemoryBackpressureMiddleware),
    ):
        _count(partial(call, bare, body=False), requests)
        for body, options in ((False, {}), (True, {}), (False, {"min_available": _FULL})):
            app = middleware(bare, monitor=_room(), **options)
            _count(partial(call, app, body=body), requests)
            refused = requests + _WARM_UP if options else 0
            if app.statistics().shed != refused:
                raise SystemExit(f"{app.statistics().shed} requests were refused in place of {refused}.")


def _count(call: Callable[[int], None], requests: int) -> None:
    call(_WARM_UP)
    gc.collect()
    os.getppid()
    call(requests)
    os.getppid()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost.instructions", description=__doc__)
    parser.add_argument(
        "--accept", action="store_true", help="write down what it takes now, for this version of Python"
    )
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        _work(options.work)
        return 0
    version = "{}.{}".format(*sys.version_info)
    try:
        counts = count()
    except CannotCount as error:
        print(error, file=sys.stderr)
        return 1
    accepted = load(ACCEPTED, version)
    for kind, number in counts.items():
        before = f" ({accepted[kind]:,.0f} accepted)" if accepted and kind in accepted else ""
        print(f"{kind:16} {number:9,.0f} instructions a request{before}")
    if options.accept:
        accept(ACCEPTED, version, counts)
        return 0
    if accepted is None:
        print(f"Nothing was accepted for Python {version} yet; do so with --accept.", file=sys.stderr)
        return 1
    problems = compare(counts, accepted)
    print(*problems, sep="\n", file=sys.stderr, end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
