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


# --- the config ---


def configured(service: Service, config: dict[str, object], **options: object) -> Flask:
    app = make_app()
    app.config.update(config)
    MemoryBackpressure(app, monitor=service.monitor, **options)  # type: ignore[arg-type]
    return app


def test_options_may_stand_in_the_config(service: Service) -> None:
    app = configured(service, {"MEMORY_BACKPRESSURE_STATUS": 429, "MEMORY_BACKPRESSURE_EXEMPT": ["/"]})
    service.fill()
    assert app.test_client().get("/").status_code == 200
    assert app.test_client().get("/livez").status_code == 429


def test_functions_may_stand_in_the_config(service: Service) -> None:
    app = configured(service, {"MEMORY_BACKPRESSURE_RESPONSE": lambda shed: {"retry": shed.path}})
    service.fill()
    assert app.test_client().get("/").get_json() == {"retry": "/"}


def test_texts_in_the_config_are_read_like_variables(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``app.config.from_prefixed_env()`` leaves them there."""
    monkeypatch.setenv("FLASK_MEMORY_BACKPRESSURE_EXEMPT", "/, /x")
    monkeypatch.setenv("FLASK_MEMORY_BACKPRESSURE_DRY_RUN", "off")
    app = make_app()
    app.config.from_prefixed_env()
    MemoryBackpressure(app, monitor=service.monitor)
    service.fill()
    assert app.test_client().get("/").status_code == 200
    assert app.test_client().get("/y").status_code == 503


def test_the_constructor_goes_before_the_config_and_that_before_the_environment(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESOURCE_MONITOR_STATUS", "503")
    monkeypatch.setenv("RESOURCE_MONITOR_RETRY_AFTER", "7000")
    app = configured(
        service, {"MEMORY_BACKPRESSURE_STATUS": 429, "MEMORY_BACKPRESSURE_RETRY_AFTER": 9}, retry_after=100
    )
    service.fill()
    response = app.test_client().get("/")
    assert response.status_code == 429
    assert 100 <= int(response.headers["retry-after"]) <= 160


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        (
            "MEMORY_BACKPRESSURE_MAX_WAITS",
            5,
            "The config of the Flask app 'shop' has MEMORY_BACKPRESSURE_MAX_WAITS=5, which is no option; the nearest "
            "is MEMORY_BACKPRESSURE_MAX_WAIT.",
        ),
        (
            "MEMORY_BACKPRESSURE_RETRY",
            5,
            "The config of the Flask app 'shop' has MEMORY_BACKPRESSURE_RETRY=5, which is no option; the nearest is "
            "MEMORY_BACKPRESSURE_RETRY_AFTER.",
        ),
        (
            "MEMORY_BACKPRESSURE_STATUS",
            500,
            "MEMORY_BACKPRESSURE_STATUS=500 is no status for want of memory; give 503 or 429.",
        ),
        (
            "MEMORY_BACKPRESSURE_ON_SHED",
            5,
            "MEMORY_BACKPRESSURE_ON_SHED=5 cannot be called; give a function of the Shed.",
        ),
    ],
)
def test_a_mistake_in_the_config_is_told_with_its_key(service: Service, key: str, value: object, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as e:
        configured(service, {key: value})
    assert str(e.value) == sentence


def test_keys_of_others_are_nobodys_mistake(service: Service) -> None:
    configured(service, {"MEMORY_LIMIT": 5, "memory_backpressure_x": 5})
