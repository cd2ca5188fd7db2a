"""The Flask extension: the WSGI adapter around ``app.wsgi_app``, by Flask's own conventions for extensions."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Unpack

from resource_monitor.errors import ConfigurationError
from resource_monitor.middleware.admitted import ADMITTED
from resource_monitor.middleware.bodies import BodyTooLarge
from resource_monitor.middleware.environment import settle
from resource_monitor.middleware.gate import Gate
from resource_monitor.middleware.losses import let_go
from resource_monitor.middleware.options import Options
from resource_monitor.middleware.statistics import Statistics
from resource_monitor.middleware.wsgi import GatedApp

if TYPE_CHECKING:
    from flask import Flask
    from flask.wrappers import Response

_NAME = "memory_backpressure"
_PREFIX = "MEMORY_BACKPRESSURE_"
_KEYS = {f"{_PREFIX}{option.upper()}": option for option in sorted(Options.__optional_keys__)}


class MemoryBackpressure:
    """``MemoryBackpressure(app)``, or ``MemoryBackpressure(); …; init_app(app)`` with an application factory.

    The keyword options are those of :class:`~resource_monitor.middleware.options.Options`; each may stand in the app's
    config instead, as ``MEMORY_BACKPRESSURE_`` and its name in capitals. Raises
    :class:`~resource_monitor.ConfigurationError` for a value that cannot be meant, such a key that is none, or an app
    that is wrapped already.
    """

    def __init__(self, app: Flask | None = None, **options: Unpack[Options]) -> None:
        self._options = options
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Wrap ``app``; one extension may serve several apps, each with counts of its own."""
        if _NAME in app.extensions:
            raise ConfigurationError(f"The Flask app {app.name!r} is wrapped already; wrap it once.")
        options, names = settle(self._options, _configured(app))
        gated = GatedApp(app.wsgi_app, Gate(names, **options))
        app.wsgi_app = gated  # type: ignore[method-assign]
        app.extensions[_NAME] = gated
        # else Flask would answer 500 and log a traceback; a handler of the user's own goes before, early or late
        handlers = app.error_handler_spec[None][None]
        for kind in (MemoryError, BodyTooLarge):
            if kind not in handlers:
                app.register_error_handler(kind, lambda error: _refuse(app, gated, error))

    @staticmethod
    def statistics(app: Flask) -> Statistics:
        """What the middleware around ``app`` did so far."""
        gated: GatedApp = app.extensions[_NAME]
        return gated.statistics()


def _configured(app: Flask) -> dict[str, tuple[str, object]]:
    """The options in the app's config, with their keys."""
    given: dict[str, tuple[str, object]] = {}
    for key, value in app.config.items():
        if not key.startswith(_PREFIX):
            continue
        if key not in _KEYS:
            [nearest] = get_close_matches(key, _KEYS, 1, 0.0)
            raise ConfigurationError(
                f"The config of the Flask app {app.name!r} has {key}={value!r}, which is no option; the nearest is "
                f"{nearest}."
            )
        given[_KEYS[key]] = key, value
    return given


def _refuse(app: Flask, gated: GatedApp, error: Exception) -> Response:
    from flask import request

    admitted = request.environ[ADMITTED]
    shed = gated.gate.too_large(admitted) if isinstance(error, BodyTooLarge) else gated.gate.lost(admitted)
    if shed is None:
        raise error  # as if there were no handler
    answer = gated.answer(shed, request.environ)
    let_go(error)
    return app.response_class(answer.body, status=answer.wsgi_status, headers=answer.wsgi_headers())
