"""Requests to a real uvicorn that wait for room."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import plain_http
import pytest
from programs import uvicorn
from services import ROOMY, Service, StartService


@pytest.fixture(params=["asyncio", "uvloop"])
def waits(start: StartService, request: pytest.FixtureRequest) -> Service:
    """Full at first."""
    return start(*uvicorn("asgi_apps:waits"), "--loop", request.param)


def wait_for(service: Service, waiting: int) -> None:
    for _ in range(3000):
        if plain_http.get(f"{service.url}/health").json()["waiting"] == waiting:
            return
        time.sleep(0.02)
    raise AssertionError(plain_http.get(f"{service.url}/health").json())


def test_requests_wait_until_there_is_room(waits: Service) -> None:
    with ThreadPoolExecutor(20) as pool:
        gets = [pool.submit(plain_http.get, waits.url, timeout=60) for _ in range(10)]
        posts = [
            pool.submit(plain_http.post, f"{waits.url}/upload", content=bytes(200_000), timeout=60) for _ in range(5)
        ]
        wait_for(waits, 15)
        waits.cgroup.set_limit(ROOMY)
        assert {answer.result().text for answer in gets} == {"hello"}
        assert {answer.result().text for answer in posts} == {"200000"}
    wait_for(waits, 0)
    assert plain_http.get(f"{waits.url}/health").json()["shed"] == {}


def test_clients_that_go_away_wait_no_more(waits: Service) -> None:
    clients = [socket.create_connection(("127.0.0.1", waits.port)) for _ in range(5)]
    for client in clients:
        client.sendall(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
    wait_for(waits, 5)
    for client in clients:
        client.close()
    wait_for(waits, 0)
    found = plain_http.get(f"{waits.url}/health").json()
    assert (found["shed"], found["in_flight"]) == ({}, 1)  # this very question
