"""One connection of HTTP/1.1 to a real server through refusals of every kind: each has an end that the next request can
begin after, and none closes it."""

from http.client import HTTPConnection

import pytest
from programs import uvicorn
from services import Service, StartService

SERVERS = {
    "uvicorn with h11": (*uvicorn("apps:asgi"), "--http", "h11"),
    "uvicorn with httptools": (*uvicorn("apps:asgi"), "--http", "httptools"),
    "gunicorn": ("gunicorn", "apps:wsgi", "-b", "127.0.0.1:0", "-k", "gthread", "--threads", "8"),
}
PREFLIGHT = {"origin": "https://shop.example", "access-control-request-method": "POST"}


class Connection:
    """Fails where the server closed it, for it is never opened again."""

    def __init__(self, service: Service) -> None:
        self._http = HTTPConnection("127.0.0.1", service.port, timeout=60)
        self._http.connect()
        self._http.auto_open = 0

    def ask(self, method: str, path: str = "/", body: object = None, **headers: str) -> tuple[int, str, int]:
        """The status, the kind of answer, and how many bytes it had."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._http.request(method, path, body, named)  # type: ignore[arg-type]
        answer = self._http.getresponse()
        assert answer.headers["connection"] != "close"
        kind, size = answer.headers["content-type"].partition(";")[0], len(answer.read())
        if method != "HEAD":
            assert size == int(answer.headers["content-length"])
        return answer.status, kind, size

    def close(self) -> None:
        self._http.close()


@pytest.mark.parametrize("server", SERVERS)
def test_a_connection_lives_on_after_every_kind_of_refusal(start: StartService, server: str) -> None:
    service = start(*SERVERS[server])
    connection = Connection(service)
    status, kind, size = connection.ask("GET")
    assert (status, kind) == (503, "application/problem+json")
    assert connection.ask("HEAD") == (503, "application/problem+json", 0)
    assert connection.ask("POST", "/count", b"x" * 200_000) == (503, kind, size)
    assert connection.ask("POST", "/count", iter([b"x" * 70_000] * 3)) == (503, kind, size)
    status, kind, _ = connection.ask("GET", accept="text/html")
    assert (status, kind) == (503, "text/plain")
    assert connection.ask("HEAD", accept="text/html") == (503, "text/plain", 0)
    assert connection.ask("OPTIONS", **{name.replace("-", "_"): value for name, value in PREFLIGHT.items()})[0] < 500
    service.empty()
    assert connection.ask("GET")[0] == 200
    service.fill()
    assert connection.ask("GET")[0] == 503
    connection.close()
