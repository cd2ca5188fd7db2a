"""gunicorn's configuration for server processes that are forked from one that had loaded the app.

``gunicorn --config python:benchmarks.overload.forked``. They share what the app's modules take, which processes that
each load it for themselves (``uvicorn --workers``) pay for once each. ``ARENA_LIMIT_CONCURRENCY`` is uvicorn's option.
"""

import gc
import os
from typing import Any

from uvicorn_worker import UvicornWorker


class Worker(UvicornWorker):
    """uvicorn's, with the strategy's limit on concurrency."""

    CONFIG_KWARGS: dict[str, Any] = UvicornWorker.CONFIG_KWARGS | {
        "limit_concurrency": int(os.environ.get("ARENA_LIMIT_CONCURRENCY", "0")) or None,
    }


def when_ready(_: object) -> None:
    """The first collection in a worker would touch, and so copy, all of it."""
    gc.freeze()


preload_app = True
worker_class = Worker
backlog = 4096
loglevel = "error"
