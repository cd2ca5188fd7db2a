"""The Flask extension: the WSGI adapter around ``app.wsgi_app``, by Flask's own conventions for extensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from resource_monitor.errors import ConfigurationError
from resource_monitor.middleware.bodies import BodyTooLarge
from resource_monitor.middleware.losses import let_go
from resource_monitor.middleware.options import Options
from resource_monitor.middleware.responses import TOO_LARGE, Problem
from resource_monitor.middleware.statistics import Statistics
from resource_monitor.middleware.wsgi import ADMITTED, WSGIMemoryBackpressureMiddleware

if TYPE_CHECKING:
    from flask import Flask
    from flask.wrappers import Response

_NAME = "memory_backpressure"


class MemoryBackpressure:
    """``MemoryBackpressure(app)``, or ``MemoryBackpressure(); …; init_app(app)`` with an application factory.

    The keyword options are those of :class:`~resource_monitor.middleware.options.Options`. Raises
    :class:`~resource_monitor.ConfigurationError` for a value that cannot be meant, or an app that is wrapped already.
    """

    def __init__(self, app: Flask | None = None, **options: Unpack[Options]) -> None:
        self._options = options
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Wrap ``app``; one extension may serve several apps, each with counts of its own."""
        if _NAME in app.extensions:
            raise ConfigurationError(f"The Flask app {app.name!r} is wrapped already; wrap it once.")
        middleware = WSGIMemoryBackpressureMiddleware(app.wsgi_app, **self._options)
        app.wsgi_app = middleware  # type: ignore[method-assign]
        app.extensions[_NAME] = middleware
        # else Flask would answer 500 and log a traceback; a handler of the user's own goes before, early or late
        handlers = app.error_handler_spec[None][None]
        if MemoryError not in handlers:
            app.register_error_handler(MemoryError, lambda error: _refuse(app, middleware.gate.refusal, error))
        if BodyTooLarge not in handlers:
            app.register_error_handler(BodyTooLarge, lambda error: _answer(app, TOO_LARGE, error))

    @staticmethod
    def statistics(app: Flask) -> Statistics:
        """What the middleware around ``app`` did so far."""
        middleware: WSGIMemoryBackpressureMiddleware = app.extensions[_NAME]
        return middleware.statistics()


def _refuse(app: Flask, refusal: Problem, error: Exception) -> Response:
    from flask import request

    request.environ[ADMITTED].lose()
    return _answer(app, refusal, error)


def _answer(app: Flask, problem: Problem, error: Exception) -> Response:
    let_go(error)
    return app.response_class(problem.body, status=problem.wsgi_status, headers=problem.wsgi_headers())
