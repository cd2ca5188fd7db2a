"""What clients of a real gunicorn see."""

import http.client
import threading
from collections import Counter

import httpx
from services import Service

BODY = b"x" * 200_000


def test_a_refusal_is_a_whole_answer(wsgi: Service) -> None:
    answer = httpx.get(wsgi.url)
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.json()["status"] == 503


def test_head_is_refused_without_a_body(wsgi: Service) -> None:
    with httpx.Client(base_url=wsgi.url) as client:
        answer = client.head("/")
        assert (answer.status_code, answer.content) == (503, b"")
        assert client.get("/").status_code == 503


def test_clients_that_upload_over_kept_connections_all_read_their_refusals(wsgi: Service) -> None:
    """A server that closes on an unread body resets the connection, and the client loses the answer."""
    found: Counter[int | str] = Counter()
    lock = threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", wsgi.port, timeout=60)
        for _ in range(10):
            try:
                connection.request("POST", "/count", BODY)
                answer = connection.getresponse()
                answer.read()
                outcome: int | str = answer.status
            except OSError as error:
                outcome = type(error).__name__
                connection.close()
            with lock:
                found[outcome] += 1
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {503: 80}


def test_a_chunked_upload_is_refused_and_the_connection_lives_on(wsgi: Service) -> None:
    with httpx.Client(base_url=wsgi.url) as client:
        for _ in range(3):
            assert client.post("/count", content=iter([BODY, BODY])).status_code == 503
        assert client.get("/livez").text == "hello"


def test_with_room_again_everything_is_answered(wsgi: Service) -> None:
    wsgi.empty()
    assert httpx.post(f"{wsgi.url}/count", content=BODY).text == "200000"
