"""python examples/grpc_app.py

The sample app under gRPC: the interceptor of an ``aio`` server, and before it a gateway that speaks HTTP, as browsers
and ``load_test.py`` do, at ``--port`` (8000). Messages are JSON, so that nothing has to be generated.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

import grpc
import grpc.aio
from aiohttp import web
from stats import stats
from work import BadQuery, Job

from resource_monitor.middleware.grpc import AioMemoryBackpressureInterceptor

WORK = "/memory_backpressure.Sample/Work"
HTTP_STATUS = {grpc.StatusCode.UNAVAILABLE: 503, grpc.StatusCode.INVALID_ARGUMENT: 400}


class Sample(grpc.GenericRpcHandler):
    """The service, with one method."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        if details.method != WORK:
            return None
        return grpc.unary_unary_rpc_method_handler(self.work, json.loads, encode)

    async def work(self, request: dict[str, str], context: grpc.aio.ServicerContext[Any, Any]) -> dict[str, str]:
        try:
            job = Job.from_query(request)
        except BadQuery as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        for pause in job.run():
            await asyncio.sleep(pause)
        return {"outcome": "done"}  # no bare string, which aio servers encode before they call the serializer


def encode(message: Any) -> bytes:
    return json.dumps(message).encode()


def gateway(channel: grpc.aio.Channel, interceptor: AioMemoryBackpressureInterceptor) -> web.Application:
    call = channel.unary_unary(WORK, encode, json.loads)

    async def work(request: web.Request) -> web.Response:
        try:
            done = await call(dict(request.query))
        except grpc.aio.AioRpcError as error:
            return web.Response(status=HTTP_STATUS.get(error.code(), 500), text=f"{error.details()}\n")
        return web.Response(text=f"{done['outcome']}\n")

    async def healthz(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def statistics(request: web.Request) -> web.Response:
        return web.json_response(stats(interceptor.statistics()))

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/work", work), web.get("/stats", statistics)])
    return app


async def main(port: int) -> None:
    interceptor = AioMemoryBackpressureInterceptor()
    server = grpc.aio.server(interceptors=[interceptor])
    server.add_generic_rpc_handlers([Sample()])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        runner = web.AppRunner(gateway(channel, interceptor))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print(f"gRPC at {address}, HTTP at http://127.0.0.1:{port}", flush=True)
        await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    asyncio.run(main(parser.parse_args().port))
