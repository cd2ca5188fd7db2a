"""The sample app (``unprotected.py``) with memory backpressure.

    uvicorn app:app --app-dir examples

/health/livez is always answered, /health/readyz is 503 while the app sheds; with ?verbose both tell why.

In a module of its own: the allocation guard is the whole process's, whoever else imports this.
"""

from __future__ import annotations

from unprotected import app as unprotected

from resource_monitor.middleware import DEFAULT_EXEMPT, HealthEndpoint, MemoryBackpressureMiddleware

app = MemoryBackpressureMiddleware(unprotected, exempt=[*DEFAULT_EXEMPT, "/stats"])
unprotected.state.statistics = app.statistics
unprotected.mount("/health", HealthEndpoint(app))
