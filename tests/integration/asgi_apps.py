"""A Starlette app under the options that are to be seen at work: ``asgi_apps:waits`` and so on, made when asked for."""

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from resource_monitor.middleware import MemoryBackpressureMiddleware

_OPTIONS: dict[str, dict[str, Any]] = {
    # of a limit of 128 MiB the server itself uses more than the tenth, of 4 GiB it does not
    "full": {"min_available": "90%"},
    "waits": {"min_available": "90%", "max_wait": 60},
    "small": {"max_body": "1MiB"},
    # without the guard, which would refuse the app what bodies are refused a moment earlier
    "patient": {"body_timeout": 60, "allocation_guard": False},
    "hasty": {"body_timeout": 0.3, "allocation_guard": False},
}


def __getattr__(name: str) -> Any:
    if name not in _OPTIONS:
        raise AttributeError(name)
    return make(**_OPTIONS[name])


def make(**options: Any) -> Any:
    read = 0

    async def upload(request: Request) -> Response:
        nonlocal read
        pieces = []
        async for piece in request.stream():
            pieces.append(piece)
            read += len(piece)
        return PlainTextResponse(str(sum(map(len, pieces))))

    async def statistics(request: Request) -> Response:
        found = middleware.statistics()
        return JSONResponse(
            {
                "read": read,
                "waiting": found.waiting,
                "in_flight": found.in_flight,
                "shed": found.shed_by_reason,
                "wasted": found.wasted,
                "promised": found.promised,
            }
        )

    app = Starlette(
        routes=[
            Route("/", lambda request: PlainTextResponse("hello")),
            Route("/upload", upload, methods=["POST"]),
            Route("/health", statistics),
        ]
    )
    middleware = MemoryBackpressureMiddleware(app, **options)
    return middleware
