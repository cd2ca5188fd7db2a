"""What clients of real servers see when their uploads are refused, too large, or find no room on their way."""

from __future__ import annotations

import http.client
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import plain_http
import psutil
import pytest
import trustme
from machine import MIB
from programs import start_python, uvicorn
from services import ROOMY, Service, StartService

SIZE = 8 * MIB


def hypercorn(app: str) -> tuple[str, ...]:
    module, _, name = app.partition(":")
    app = f"{module}:__getattr__({name!r})"  # it looks in the module's own names alone
    return ("hypercorn", app, "-b", "127.0.0.1:0", "--graceful-timeout", "1")


SERVERS = [
    pytest.param(lambda app: (*uvicorn(app), "--loop", "asyncio", "--http", "h11"), id="uvicorn-asyncio-h11"),
    pytest.param(lambda app: (*uvicorn(app), "--loop", "uvloop", "--http", "httptools"), id="uvicorn-uvloop-httptools"),
    pytest.param(hypercorn, id="hypercorn-asyncio"),
    pytest.param(lambda app: (*hypercorn(app), "-k", "trio"), id="hypercorn-trio"),
]
Serve = Callable[[str], tuple[str, ...]]


def uploads(port: int, *, clients: int = 10, times: int = 2, chunked: bool, kept: bool) -> Counter[Any]:
    """What clients of the standard library find, which send all before they look for an answer."""
    found: Counter[Any] = Counter()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for _ in range(times):
            body: Any = iter([bytes(65536)] * (SIZE // 65536)) if chunked else bytes(SIZE)
            try:
                headers = {} if kept else {"Connection": "close"}
                connection.request("POST", "/upload", body, headers, encode_chunked=chunked)
                answer = connection.getresponse()
                answer.read()
                found[answer.status] += 1
            except OSError as error:
                found[type(error).__name__] += 1
                connection.close()
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("serve", SERVERS)
@pytest.mark.parametrize(("app", "status"), [("full", 503), ("small", 413)])
def test_clients_whose_uploads_are_refused_read_why(start: StartService, serve: Serve, app: str, status: int) -> None:
    """A server that closes on an unread body resets the connection, and the client loses the answer."""
    service = start(*serve(f"asgi_apps:{app}"))
    for chunked in (False, True):
        for kept in (False, True):
            assert uploads(service.port, chunked=chunked, kept=kept) == {status: 20}


def test_a_connection_lives_on_after_a_refused_upload(start: StartService) -> None:
    service = start(*uvicorn("asgi_apps:small"))
    service.cgroup.set_limit(ROOMY)
    with httpx.Client(base_url=service.url) as client:
        ports = set()
        for size, status in ((2 * MIB, 413), (MIB, 200), (2 * MIB, 413)):
            answer = client.post("/upload", content=bytes(size))
            ports.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
            assert answer.status_code == status
        assert len(ports) == 1


@pytest.mark.parametrize("serve", SERVERS[:2])
@pytest.mark.parametrize("framing", [f"Content-Length: {30 * MIB}", "Transfer-Encoding: chunked"])
def test_a_long_refused_upload_takes_its_connection_along(start: StartService, serve: Serve, framing: str) -> None:
    """The client may send it all, before or after it reads the answer, and the server's process never has to."""
    service = start(*serve("asgi_apps:full"))
    with socket.create_connection(("127.0.0.1", service.port), 60) as client, client.makefile("rb") as answer:
        client.sendall(f"POST /upload HTTP/1.1\r\nHost: test\r\n{framing}\r\n\r\n".encode())
        head, _, body = answer.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert head.lower().count(b"\r\nconnection: close") == 1
        assert b"short of memory" in body
        client.sendall(bytes(30 * MIB))
    process = psutil.Process(service.server.process.pid)
    for _ in range(3000):
        if all(found.status == psutil.CONN_LISTEN for found in process.net_connections("tcp")):
            return
        time.sleep(0.02)
    raise AssertionError("the server never closed the connection")


def test_over_tls_the_rest_of_a_refused_upload_is_read(start: StartService, tmp_path: Path) -> None:
    """What comes over the connection is then for the server alone to read, goodbyes included."""
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "pem")
    service = start(*uvicorn("asgi_apps:full"), "--ssl-certfile", str(tmp_path / "pem"))
    with httpx.Client(base_url=service.url.replace("http", "https"), verify=False, timeout=60) as client:
        for content in (bytes(30 * MIB), iter([bytes(MIB)] * 30)):
            answer = client.post("/upload", content=content)
            assert answer.status_code == 503
            assert "connection" not in answer.headers


@contextmanager
def another_process_takes_the_memory(service: Service) -> Iterator[subprocess.Popen[str]]:
    """Takes what is left of the service's limit but 6 MiB, of which bodies leave 8, as long as the block lasts."""
    program = """
        import sys
        from resource_monitor import MemoryMonitor

        monitor, taken = MemoryMonitor(), []
        while monitor.read().headroom > 6 << 20:
            taken.append(b"x" * (1 << 18))
        print("taken", flush=True)
        sys.stdin.read()
    """
    with start_python(service.cgroup, program) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        yield process


class SlowClient:
    """Sends the first half of its body, and the second when told to, as fast as it is taken."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.connection.putrequest("POST", "/upload")
        self.connection.putheader("Content-Length", str(SIZE))
        self.connection.endheaders()
        self.connection.send(bytes(SIZE // 2))
        self.sender = threading.Thread(target=lambda: self.connection.send(bytes(SIZE // 2)))

    def answer(self) -> tuple[int, bytes]:
        self.sender.join()
        answer = self.connection.getresponse()
        found = answer.status, answer.read()
        self.connection.close()
        return found


def until(service: Service, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The statistics when they are as they have to become."""
    for _ in range(3000):
        found: dict[str, Any] = plain_http.get(f"{service.url}/health").json()
        if condition(found):
            return found
        time.sleep(0.02)
    raise AssertionError(found)


def test_a_slow_upload_stops_while_another_process_has_the_memory_and_ends_well(start: StartService) -> None:
    service = start(*uvicorn("asgi_apps:patient"))
    client = SlowClient(service.port)
    until(service, lambda found: found["read"] == SIZE // 2)
    with another_process_takes_the_memory(service) as other:
        client.sender.start()
        time.sleep(0.5)
        found = until(service, lambda found: True)
        assert found["read"] <= SIZE // 2 + MIB
        assert found["promised"] >= SIZE // 2 - MIB
        other.communicate()
    assert client.answer() == (200, str(SIZE).encode())
    found = until(service, lambda found: found["in_flight"] == 1)  # this very question
    assert (found["shed"], found["wasted"], found["promised"]) == ({}, 0, 0)


def test_an_upload_that_finds_no_room_ends_with_503_that_its_client_reads(start: StartService) -> None:
    service = start(*uvicorn("asgi_apps:hasty"))
    client = SlowClient(service.port)
    until(service, lambda found: found["read"] == SIZE // 2)
    with another_process_takes_the_memory(service) as other:
        client.sender.start()
        status, body = client.answer()
        assert status == 503
        assert b"short of memory" in body
        other.communicate()
    found = until(service, lambda found: found["in_flight"] == 1)
    assert (found["shed"], found["wasted"], found["promised"]) == ({"body": 1}, 1, 0)
