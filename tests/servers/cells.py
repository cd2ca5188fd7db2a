"""The cells of the matrix: each provokes one thing and gives in a word what the client saw."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
from kinds import NONE
from running import RunningServer
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

SMALL, LARGE = 200_000, 30_000_000
CUT_OFF = (ConnectionError, httpx.NetworkError, httpx.RemoteProtocolError)


def refusal(server: RunningServer) -> str:
    with server.client() as client:
        answer = client.get("/full")
    if answer.status_code == 503:
        assert answer.headers["retry-after"] in ("1", "2")
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == 503
    return str(answer.status_code)


def head(server: RunningServer) -> str:
    with server.client() as client:
        answer = client.head("/full")
        assert answer.content == b""
        assert int(answer.headers["content-length"]) > 0
        assert client.get("/").text == "hello"
    return str(answer.status_code)


def kept_alive(server: RunningServer) -> str:
    """503 and then 200 on one connection."""
    connections = set()

    def on_connection(response: httpx.Response) -> None:
        """Before the body is read, for a connection that the server closes is gone after it."""
        connections.add(response.extensions["network_stream"].get_extra_info("client_addr"))

    with server.client() as client:
        client.event_hooks = {"response": [on_connection]}
        answers = [client.get(path).status_code for path in ("/full", "/", "/full", "/")]
    assert answers == [503, 200, 503, 200]
    return "kept" if len(connections) == 1 else "closed"


def small_upload(server: RunningServer) -> str:
    """By the standard library's client, which sends all before it looks for an answer."""
    if server.kind.http2:
        return _uploads(server, lambda: bytes(SMALL))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        return _outcome(lambda: _request(connection, bytes(SMALL)), server)
    finally:
        connection.close()


def large_upload(server: RunningServer) -> str:
    return _uploads(server, lambda: bytes(LARGE))


def chunked_upload(server: RunningServer) -> str:
    return _uploads(server, lambda: iter([bytes(65536)] * (SMALL // 65536)))


def curl_upload(server: RunningServer) -> str:
    """Which asks before it sends a large body (``Expect: 100-continue``)."""
    version = "--http2-prior-knowledge" if server.kind.http2 else "--http1.1"
    done = subprocess.run(
        ["curl", "-s", version, "-o", "-", "-w", "%{http_code}", "--data-binary", "@-", f"{server.url}/full"],
        input=bytes(LARGE),
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.stdout[-3:].decode() if done.returncode == 0 else f"curl: {done.returncode}"


def streaming(server: RunningServer) -> str:
    """In flight until its end, and whole."""
    with server.client() as client, ThreadPoolExecutor() as pool:
        answer = pool.submit(client.get, "/stream")
        server.wait_until(lambda: server.counts()["held"] == 1, "streaming")
        assert server.counts()["in_flight"] == 1
        server.release()
        assert answer.result().content == b"x" * 65536 * 8
    return str(answer.result().status_code)


def disconnect(server: RunningServer) -> str:
    """In the middle of a body that is taken, and of one that is refused."""
    before = server.counts()
    for path, counted in (("/upload", "in_flight"), ("/full", "shed")):

        def half(counted: str = counted) -> Iterator[bytes]:
            yield bytes(SMALL)
            if not server.kind.buffers_bodies:
                server.wait_until(lambda: server.counts()[counted] > before[counted], f"one {counted}")
            raise ClientGone

        with server.client() as client:
            try:
                client.post(path, content=half(), headers={"content-length": str(2 * SMALL)})
            except ClientGone:
                pass
            else:
                raise AssertionError(f"{path} was answered before its body was there")
    server.settle()
    return "ended" if server.counts()["admitted"] > before["admitted"] else "not begun"


class ClientGone(Exception):
    """The client breaks off."""


def websocket(server: RunningServer) -> str:
    if not server.kind.websockets:
        return NONE
    address = f"ws://127.0.0.1:{server.port}"
    with connect(f"{address}/echo", proxy=None) as served:
        served.send("hello")
        assert served.recv() == "hello"
    try:
        connect(f"{address}/full", proxy=None)
    except InvalidStatus as refused:
        return str(refused.response.status_code)
    raise AssertionError("the websocket was accepted")


def burst(server: RunningServer) -> str:
    """Sixteen connections of wrk, which speaks HTTP/1.1 alone."""
    if server.kind.http2:
        return NONE
    done = subprocess.run(
        ["wrk", "-t1", "-c16", "-d1s", f"{server.url}/full"], capture_output=True, text=True, timeout=60, check=True
    )
    if "Socket errors" in done.stdout:
        return "errors"
    answers = _number(r"(\d+) requests in", done.stdout)
    assert answers > 0
    assert _number(r"Non-2xx or 3xx responses: (\d+)", done.stdout) == answers
    return "503"


def shutdown(server: RunningServer) -> str:
    """SIGTERM while a request is in flight, which is let go once the server accepts no others or has ended."""
    found: list[str] = []

    def get() -> None:
        with server.client() as client:
            try:
                found.append(str(client.get("/hold").status_code))
            except CUT_OFF:
                found.append("cut off")

    client = threading.Thread(target=get)
    client.start()
    server.wait_until(lambda: server.counts()["held"] == 1, "held")
    server.terminate()
    _wait_for_the_end_to_begin(server, client)
    if client.is_alive():
        server.release()
    client.join()
    server.process.wait(60)
    return found[0]


@dataclass(frozen=True, slots=True)
class Cell:
    """``expected`` is the outcome where a server's kind notes no other; ``about`` explains the column in the docs."""

    see: Callable[[RunningServer], str]
    expected: str
    about: str


CELLS: dict[str, Cell] = {
    "GET": Cell(refusal, "503", "a refused request, whose `Retry-After` and body the client reads"),
    "HEAD": Cell(head, "503", "the same without a body, and a request that is served after it"),
    "connection": Cell(kept_alive, "kept", "whether one connection carries refusals and answers in turn"),
    "200 kB": Cell(small_upload, "503", "refused uploads by a client that sends all before it reads"),
    "30 MB": Cell(large_upload, "503", "the same, of a body that fits in no buffer on its way"),
    "chunked": Cell(chunked_upload, "503", "the same, of a body whose length is not announced"),
    "curl": Cell(curl_upload, "503", "30 MB by curl, which asks before it sends (`Expect: 100-continue`)"),
    "stream": Cell(streaming, "200", "a response in pieces, in flight until its end"),
    "client gone": Cell(disconnect, "ended", "a client that goes in the middle of its body: the request ends"),
    "websocket": Cell(websocket, "503", "a refused handshake"),
    "burst": Cell(burst, "503", "a second of refusals on 16 connections: all are read"),
    "SIGTERM": Cell(shutdown, "200", "a request that was in flight when the server was told to stop"),  # has to be last
}


def _uploads(server: RunningServer, body: Callable[[], bytes | Iterator[bytes]]) -> str:
    with server.client() as client:
        return _outcome(lambda: client.post("/full", content=body()).status_code, server)


def _outcome(upload: Callable[[], int], server: RunningServer) -> str:
    """Of several uploads one after the other, by which a connection that was left in disorder would be found out."""
    outcomes = set()
    for _ in range(3):
        try:
            outcomes.add(str(upload()))
        except CUT_OFF:
            outcomes.add("reset")
    with server.client() as client:
        assert client.get("/").text == "hello"
    return " or ".join(sorted(outcomes))


def _request(connection: http.client.HTTPConnection, body: bytes) -> int:
    try:
        connection.request("POST", "/full", body)
        answer = connection.getresponse()
        answer.read()
    except OSError:
        connection.close()
        raise
    return answer.status


def _wait_for_the_end_to_begin(server: RunningServer, client: threading.Thread) -> None:
    deadline = time.monotonic() + 1
    while client.is_alive() and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", server.port), 1).close()
        except OSError:
            return
        time.sleep(0.01)


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    assert match is not None, text
    return int(match[1])
