"""What clients of a real gunicorn see."""

import http.client
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import plain_http
import pytest
from machine import MIB
from services import HERE, ROOMY, Service, StartService

BODY = b"x" * 200_000


def test_a_refusal_is_a_whole_answer(wsgi: Service) -> None:
    answer = plain_http.get(wsgi.url)
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.json()["status"] == 503


def test_head_is_refused_without_a_body(wsgi: Service) -> None:
    with httpx.Client(base_url=wsgi.url) as client:
        answer = client.head("/")
        assert (answer.status_code, answer.content) == (503, b"")
        assert client.get("/").status_code == 503


def upload(
    port: int, body: bytes, *, clients: int = 8, times: int = 1, path: str = "/count", **how: bool
) -> Counter[Any]:
    """What so many clients of the standard library find, which send all before they look for an answer."""
    found: Counter[Any] = Counter()
    lock = threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for _ in range(times):
            pieces = [body[at : at + 65536] for at in range(0, len(body), 65536)]
            headers = {} if how.get("kept", True) else {"Connection": "close"}
            try:
                if how.get("chunked"):
                    connection.request("POST", path, iter(pieces), headers, encode_chunked=True)
                else:
                    connection.request("POST", path, body, headers)
                answer = connection.getresponse()
                answer.read()
                outcome: Any = answer.status
            except OSError as error:
                outcome = type(error).__name__
                connection.close()
            with lock:
                found[outcome] += 1
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("size", [200_000, 8_000_000])
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
def test_clients_that_upload_all_read_their_refusals(wsgi: Service, size: int, kept: bool, chunked: bool) -> None:
    """A server that closes on an unread body resets the connection, and the client loses the answer."""
    assert upload(wsgi.port, bytes(size), times=5, kept=kept, chunked=chunked) == {503: 40}


def gunicorn(app: str, *options: str) -> tuple[str, ...]:
    return ("gunicorn", f"wsgi_apps:{app}", "-b", "127.0.0.1:0", *options)


@pytest.mark.parametrize("worker", ["sync", "gthread"])
@pytest.mark.parametrize("chunked", [True, False])
def test_clients_that_upload_too_much_all_read_a_413(start: StartService, worker: str, chunked: bool) -> None:
    service = start(*gunicorn("make(max_body='1MiB')", "-k", worker, "--threads", "8" if worker == "gthread" else "1"))
    service.cgroup.set_limit(ROOMY)
    assert upload(service.port, bytes(8_000_000), times=5, path="/keep", chunked=chunked) == {413: 40}
    assert upload(service.port, bytes(1_000_000), clients=2, path="/keep", chunked=chunked) == {200: 2}


def test_when_threads_wait_others_are_left_to_answer_liveness_probes(start: StartService) -> None:
    service = start(*gunicorn("make(max_in_flight=1, max_wait=60)", "-k", "gthread", "--threads", "4"))
    service.cgroup.set_limit(ROOMY)

    def health() -> dict[str, Any]:
        found: dict[str, Any] = plain_http.get(f"{service.url}/health").json()
        return found

    with ThreadPoolExecutor() as pool:
        held = [pool.submit(plain_http.get, f"{service.url}/hold", timeout=60)]
        while health()["in_flight"] < 2:  # it and the probe
            time.sleep(0.01)
        held += [pool.submit(plain_http.get, f"{service.url}/hold", timeout=60) for _ in range(2)]
        while health()["waiting"] < 2:
            time.sleep(0.01)
        assert plain_http.get(f"{service.url}/hold").status_code == 503
        assert plain_http.get(f"{service.url}/live").text == "released"
        assert [answer.result().text for answer in held] == ["held"] * 3
    assert health()["waiting"] == 0


@pytest.mark.parametrize("worker", ["sync", "gthread"])
def test_files_are_still_sent_by_the_kernel(start: StartService, worker: str) -> None:
    service = start(*gunicorn("make(max_body='1MiB')", "-k", worker))
    service.cgroup.set_limit(ROOMY)
    assert plain_http.get(f"{service.url}/file").text == (HERE / "wsgi_apps.py").read_text()
    found = plain_http.get(f"{service.url}/health").json()
    assert (found["sent_by_the_kernel"], found["in_flight"]) == ([True], 1)  # the probe itself


def test_uploads_that_do_not_fit_together_wait_for_each_other(start: StartService) -> None:
    """What is announced is kept room for, so that little is begun that cannot be ended.

    Each on a connection of its own: gunicorn closes one without a word once its reading of a body ran out of memory,
    which a client that sends its next request on it takes for a failure of that one.
    """
    service = start(*gunicorn("make(max_wait=10)", "-k", "gthread", "--threads", "8"))
    service.cgroup.set_limit(256 * MIB)
    found = upload(service.port, bytes(32 * MIB), times=3, path="/keep", kept=False)
    assert set(found) <= {200, 503}, found
    assert found[200] > 12


def test_a_chunked_upload_is_refused_and_the_connection_lives_on(wsgi: Service) -> None:
    with httpx.Client(base_url=wsgi.url) as client:
        for _ in range(3):
            assert client.post("/count", content=iter([BODY, BODY])).status_code == 503
        assert client.get("/livez").text == "hello"


def test_with_room_again_everything_is_answered(wsgi: Service) -> None:
    wsgi.empty()
    assert plain_http.post(f"{wsgi.url}/count", content=BODY).text == "200000"
