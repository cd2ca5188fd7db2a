"""The servers of the matrix, how each is started, and where its clients see something else than of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NONE = "–"
"""The server has nothing of the kind."""


@dataclass(frozen=True, slots=True)
class Note:
    """What the client sees, by chance one or the other where that is two, joined by "or", and a sentence for the docs
    that says why that is worth a word."""

    outcome: str
    reason: str


@dataclass(frozen=True, slots=True)
class Kind:
    """``argv`` follows ``python -m``. ``distributions`` are those whose versions matter. ``buffers_bodies``: the app is
    not called before the whole body is there."""

    name: str
    argv: tuple[str, ...]
    distributions: tuple[str, ...]
    workers: int = 1
    http2: bool = False
    websockets: bool = False
    buffers_bodies: bool = False
    notes: Mapping[str, Note] = field(default_factory=dict)

    def expected(self, cell: str, usually: str) -> str:
        """What is seen of ``cell``, ``usually`` where no note says otherwise; by chance, as :class:`Note` says it."""
        if (cell == "websocket" and not self.websockets) or (cell == "burst" and self.http2):
            return NONE
        return self.notes[cell].outcome if cell in self.notes else usually


def _uvicorn(loop: str, http: str, workers: int = 1) -> Kind:
    argv = ("uvicorn", "matrix_asgi:app", "--port", "{port}", "--no-access-log", "--loop", loop, "--http", http)
    return Kind(
        f"uvicorn, {http}, {loop}" + (f", {workers} workers" if workers > 1 else ""),
        (*argv, "--workers", str(workers)),
        ("uvicorn", http, *(["uvloop"] if loop == "uvloop" else [])),
        workers=workers,
        websockets=True,
    )


def _gunicorn(worker: str, *options: str, name: str = "", app: str = "matrix_wsgi:app", **more: object) -> Kind:
    return Kind(
        f"gunicorn, {name or worker}",
        ("gunicorn", app, "-b", "127.0.0.1:{port}", "-k", worker, *options),
        ("gunicorn",),
        **more,  # type: ignore[arg-type]
    )


_HYPERCORN = ("hypercorn", "matrix_asgi:app", "-b", "127.0.0.1:{port}", "--keep-alive", "1")
_GRANIAN = ("granian", "--port", "{port}", "--no-access-log", "--interface")
_DJANGO = ("django", "runserver", "--noreload", "--settings", "matrix_django", "--pythonpath", ".")
_READS_AHEAD = Note(
    "not begun",
    "The server calls the app, and with it the middleware, only once the whole body is there: what is uploaded has "
    "been taken, in memory or in a file, before it can be refused.",
)
_ENDS_AT_ONCE = Note("cut off", "The server ends at once, with or without the middleware.")
_CLOSES = Note("closed", "The server closes every connection after its answer.")
_READS_NO_CHUNKS = Note(
    "503 or reset",
    "The server takes a body whose length is not announced for none, with or without the middleware, and closes the "
    "connection with the body unread: the client reads the answer if it is faster than the reset behind it.",
)
_ANSWERING_NOBODY = Note(
    "ended",
    "An app that answers a client which has gone waits for ever in this server, with or without the middleware, and "
    "stays in flight; this one gives no answer.",
)

KINDS = [
    _uvicorn("asyncio", "h11"),
    _uvicorn("uvloop", "h11"),
    _uvicorn("asyncio", "httptools"),
    _uvicorn("uvloop", "httptools"),
    _uvicorn("asyncio", "h11", workers=4),
    _uvicorn("uvloop", "httptools", workers=4),
    Kind("hypercorn, HTTP/1.1", _HYPERCORN, ("hypercorn",), websockets=True),
    Kind("hypercorn, HTTP/2", _HYPERCORN, ("hypercorn",), http2=True, notes={"client gone": _ANSWERING_NOBODY}),
    Kind("granian, ASGI", (*_GRANIAN, "asgi", "matrix_asgi:app"), ("granian",), websockets=True),
    Kind(
        "daphne",
        ("daphne", "-p", "{port}", "matrix_asgi:app"),
        ("daphne",),
        websockets=True,
        buffers_bodies=True,
        notes={
            "client gone": _READS_AHEAD,
            "websocket": Note("403", "The server has no other answer than 403 for a handshake that is refused."),
            "SIGTERM": _ENDS_AT_ONCE,
        },
    ),
    _gunicorn("uvicorn_worker.UvicornWorker", name="uvicorn worker", app="matrix_asgi:app", websockets=True),
    _gunicorn("sync", notes={"connection": _CLOSES}),
    _gunicorn("gthread", "--threads", "4"),
    _gunicorn("gevent"),
    Kind("granian, WSGI", (*_GRANIAN, "wsgi", "matrix_wsgi:app"), ("granian",)),
    Kind(
        "waitress",
        ("waitress", "--listen", "127.0.0.1:{port}", "matrix_wsgi:app"),
        ("waitress",),
        buffers_bodies=True,
        notes={"client gone": _READS_AHEAD, "SIGTERM": _ENDS_AT_ONCE},
    ),
    Kind(
        "Django's runserver",
        (*_DJANGO, "127.0.0.1:{port}"),
        ("django",),
        notes={"connection": _CLOSES, "chunked": _READS_NO_CHUNKS, "SIGTERM": _ENDS_AT_ONCE},
    ),
    Kind(
        "Flask's server",
        ("flask", "--app", "matrix_wsgi", "run", "--port", "{port}"),
        ("werkzeug",),
        notes={"connection": _CLOSES, "SIGTERM": _ENDS_AT_ONCE},
    ),
]
