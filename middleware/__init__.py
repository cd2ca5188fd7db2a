"""The HTTP side: one line around an ASGI, WSGI or Flask app, and the surplus gets a 503 instead of everyone a kill."""

from resource_monitor.admission import Pressure, Priority, Reason
from resource_monitor.middleware.admitted import ADMITTED
from resource_monitor.middleware.asgi import MemoryBackpressureMiddleware
from resource_monitor.middleware.bodies import BodyTooLarge
from resource_monitor.middleware.flask import MemoryBackpressure
from resource_monitor.middleware.health import HealthEndpoint
from resource_monitor.middleware.paths import DEFAULT_EXEMPT
from resource_monitor.middleware.readings import DEFAULT_MIN_AVAILABLE
from resource_monitor.middleware.refusing import Shed, ShedResponse
from resource_monitor.middleware.statistics import RouteStatistics, Statistics
from resource_monitor.middleware.wsgi import WSGIMemoryBackpressureMiddleware

__all__ = [
    "ADMITTED",
    "DEFAULT_EXEMPT",
    "DEFAULT_MIN_AVAILABLE",
    "BodyTooLarge",
    "HealthEndpoint",
    "MemoryBackpressure",
    "MemoryBackpressureMiddleware",
    "Pressure",
    "Priority",
    "Reason",
    "RouteStatistics",
    "Shed",
    "ShedResponse",
    "Statistics",
    "WSGIMemoryBackpressureMiddleware",
]
