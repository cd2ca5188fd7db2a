import importlib.metadata
import importlib.resources

import resource_monitor


def test_every_public_name_is_there() -> None:
    assert all(hasattr(resource_monitor, name) for name in resource_monitor.__all__)
    assert len(set(resource_monitor.__all__)) == len(resource_monitor.__all__)


def test_the_distribution_and_the_package_have_one_version() -> None:
    assert importlib.metadata.version("memory-backpressure") == resource_monitor.__version__


def test_no_top_level_middleware_is_installed() -> None:
    """It would collide with users' own packages of that name."""
    files = importlib.metadata.files("memory-backpressure") or []
    assert files
    assert not [file for file in files if file.parts[0] == "middleware"]
    assert "memory-backpressure" not in importlib.metadata.packages_distributions().get("middleware", [])


def test_the_package_says_that_it_is_typed() -> None:
    assert importlib.resources.files("resource_monitor").joinpath("py.typed").is_file()
