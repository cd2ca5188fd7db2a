"""What clients of a real uvicorn see, with either of its HTTP parsers and its WebSocket implementations."""

import asyncio

import httpx
import plain_http
import pytest
from programs import uvicorn
from services import Service, StartService
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus


def test_a_refusal_is_a_whole_answer(asgi: Service) -> None:
    answer = plain_http.get(asgi.url)
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["retry-after"] in ("1", "2")
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.json()["status"] == 503


def test_a_connection_lives_on_after_refusals(asgi: Service) -> None:
    with httpx.Client(base_url=asgi.url) as client:
        ports = set()

        def status() -> int:
            answer = client.get("/")
            ports.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
            return answer.status_code

        assert [status(), status()] == [503, 503]
        asgi.empty()
        assert status() == 200
        asgi.fill()
        assert status() == 503
        assert len(ports) == 1


def test_head_is_refused_without_a_body(asgi: Service) -> None:
    with httpx.Client(base_url=asgi.url) as client:
        answer = client.head("/")
        assert answer.status_code == 503
        assert answer.content == b""
        assert int(answer.headers["content-length"]) > 0
        assert client.get("/").status_code == 503


def test_a_refused_upload_is_answered(asgi: Service) -> None:
    with httpx.Client(base_url=asgi.url) as client:
        for _ in range(5):
            assert client.post("/count", content=b"x" * 200_000).status_code == 503


def test_liveness_is_answered_all_the_time(asgi: Service) -> None:
    assert plain_http.get(f"{asgi.url}/livez").text == "hello"


def test_with_room_again_everything_is_answered(asgi: Service) -> None:
    assert plain_http.get(asgi.url).status_code == 503
    asgi.empty()
    assert plain_http.post(f"{asgi.url}/count", content=b"x" * 200_000).text == "200000"


def test_shedding_is_logged_once(asgi: Service) -> None:
    for _ in range(5):
        assert plain_http.get(asgi.url).status_code == 503
    logged = [line for line in asgi.server.log if "Shedding:" in line]
    assert len(logged) == 1


@pytest.mark.parametrize("implementation", ["websockets-sansio", "websockets", "wsproto"])
def test_a_websocket_is_refused_before_it_is_accepted_and_served_with_room(
    start: StartService, implementation: str
) -> None:
    service = start(*uvicorn("apps:asgi"), "--ws", implementation)

    async def talk() -> str | bytes:
        async with connect(f"ws://127.0.0.1:{service.port}/echo", proxy=None) as websocket:
            await websocket.send("hello")
            return await websocket.recv()

    with pytest.raises(InvalidStatus) as refused:
        asyncio.run(talk())
    assert refused.value.response.status_code == 503
    assert refused.value.response.headers["retry-after"] in ("1", "2")
    service.empty()
    assert asyncio.run(talk()) == "hello"
