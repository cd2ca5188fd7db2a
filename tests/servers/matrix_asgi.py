"""The app behind the matrix's ASGI servers. ``/full`` is never let in, by what it is known to take, so that no memory
and no other request has to be there for a refusal."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from control import Control
from matrix import MORE_THAN_THERE_IS, PIECE, PIECES
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from resource_monitor.middleware import MemoryBackpressureMiddleware


async def released() -> None:
    with control.held() as held:
        while held():
            await asyncio.sleep(0.005)


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def hold(request: Request) -> Response:
    await released()
    return PlainTextResponse("held")


class Upload:
    """Without an answer for a client that has gone: hypercorn would wait for ever for it to be taken, over HTTP/2."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            return
        await PlainTextResponse(str(len(body)))(scope, receive, send)


async def stream(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        yield PIECE
        await released()
        for _ in range(PIECES - 1):
            yield PIECE

    return StreamingResponse(pieces())


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close()


app: Any = MemoryBackpressureMiddleware(
    Starlette(
        routes=[
            Route("/", hello),
            Route("/full", hello, methods=["GET", "POST"]),
            Route("/hold", hold),
            Route("/upload", Upload(), methods=["POST"]),
            Route("/stream", stream),
            WebSocketRoute("/echo", echo),
            WebSocketRoute("/full", echo),
        ]
    ),
    request_cost=lambda scope: MORE_THAN_THERE_IS if scope["path"] == "/full" else 0,
)
control = Control(app.statistics)
