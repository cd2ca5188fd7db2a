"""gunicorn --chdir examples --threads 40 flask_app:app

The sample app under Flask: the same work and statistics as ``app.py``, wrapped by the Flask extension.
"""

from __future__ import annotations

import time
from typing import Any

from flask import Flask, Response, request
from stats import stats
from work import BadQuery, Job

from resource_monitor.middleware import DEFAULT_EXEMPT, MemoryBackpressure

app = Flask(__name__)
MemoryBackpressure(app, exempt=[*DEFAULT_EXEMPT, "/stats"])


@app.get("/ping")
def ping() -> Response:
    return _text("pong")


@app.get("/healthz")
def healthz() -> Response:
    return _text("ok")


@app.get("/work")
def work() -> Response:
    try:
        job = Job.from_query(request.args)
    except BadQuery as error:
        return _text(str(error), status=400)
    for pause in job.run():
        time.sleep(pause)
    return _text("done")


@app.get("/stats")
def statistics() -> dict[str, Any]:
    return stats(MemoryBackpressure.statistics(app))


def _text(line: str, *, status: int = 200) -> Response:
    return Response(f"{line}\n", status=status, mimetype="text/plain")
