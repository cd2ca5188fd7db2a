import pytest
from flask import Flask
from machine import Service

from resource_monitor.errors import ConfigurationError
from resource_monitor.middleware import MemoryBackpressure


def make_app(name: str = "shop") -> Flask:
    app = Flask(name)
    app.add_url_rule("/", "hello", lambda: "hello")
    return app


def test_one_line_wraps_an_app(service: Service) -> None:
    app = make_app()
    MemoryBackpressure(app, monitor=service.monitor)
    assert app.test_client().get("/").text == "hello"
    service.fill()
    response = app.test_client().get("/")
    assert response.status_code == 503
    assert response.mimetype == "application/problem+json"
    assert response.get_json()["title"] == "Service Unavailable"
    service.empty()
    assert app.test_client().get("/").status_code == 200


def test_an_application_factory_wraps_later(service: Service) -> None:
    extension = MemoryBackpressure(monitor=service.monitor)
    app = make_app()
    extension.init_app(app)
    service.fill()
    assert app.test_client().get("/").status_code == 503


def test_one_extension_serves_several_apps_with_counts_of_their_own(service: Service) -> None:
    extension = MemoryBackpressure(monitor=service.monitor)
    first, second = make_app(), make_app()
    extension.init_app(first)
    extension.init_app(second)
    first.test_client().get("/").close()
    assert extension.statistics(first).admitted == 1
    assert extension.statistics(second).admitted == 0
    assert extension.statistics(first).in_flight == 0


def test_an_app_is_wrapped_once(service: Service) -> None:
    app = make_app()
    MemoryBackpressure(app, monitor=service.monitor)
    with pytest.raises(ConfigurationError, match=r"^The Flask app 'shop' is wrapped already; wrap it once\.$"):
        MemoryBackpressure(app, monitor=service.monitor)


def test_a_view_that_raises_is_no_longer_in_flight(service: Service) -> None:
    def boom() -> str:
        raise RuntimeError

    app = make_app()
    app.add_url_rule("/boom", "boom", boom)
    MemoryBackpressure(app, monitor=service.monitor)
    app.test_client().get("/boom").close()
    assert MemoryBackpressure.statistics(app).in_flight == 0


def test_options_are_checked_when_the_app_is_wrapped(service: Service) -> None:
    with pytest.raises(ConfigurationError, match="retry_after"):
        MemoryBackpressure(make_app(), retry_after=0, monitor=service.monitor)
