import pytest

from resource_monitor.middleware.routes import Routes, route_class


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/", "GET /"),
        ("/users", "GET /users"),
        ("/users/17", "GET /users/{}"),
        ("/users/17/orders/4", "GET /users/{}/orders/{}"),
        ("/files/3f2b8c1d9e", "GET /files/{}"),
        ("/files/0b5e7a52-3c1f-4d7c-9a53-0f4a1b2c3d4e", "GET /files/{}"),
        ("/blog/how-to-stay-alive", "GET /blog/how-to-stay-alive"),
        ("/t/eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9", "GET /t/{}"),
        ("/k/a1b2c3d4e5f6g7h8i9", "GET /k/{}"),
        ("/v1/users", "GET /v1/users"),
        ("/decade", "GET /decade"),
    ],
)
def test_identifiers_are_collapsed_and_names_are_not(path: str, name: str) -> None:
    assert route_class("GET", path) == name


def test_a_class_is_one_object_for_all_its_paths_and_another_for_each_method() -> None:
    routes = Routes(lambda name: None)
    assert routes.find("GET", "/users/1") is routes.find("GET", "/users/2")
    assert routes.find("GET", "/users/1") is not routes.find("POST", "/users/1")


def test_whatever_paths_clients_invent_classes_stay_few() -> None:
    routes = Routes(lambda name: None)
    known = routes.find("GET", "/known")
    found = {
        id(routes.find("GET", f"/{'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10 % 10]}/{'x' * (i // 100)}"))
        for i in range(3000)
    }
    assert len(found) <= 257
    assert routes.find("GET", "/known") is known


def test_a_class_outlives_the_paths_that_are_forgotten() -> None:
    routes = Routes(lambda name: None)
    first = routes.find("GET", "/users/0")
    for number in range(5000):
        routes.find("GET", f"/users/{number}")
    assert routes.find("GET", "/users/0") is first
