import pytest

from resource_monitor.errors import ConfigurationError
from resource_monitor.middleware.paths import DEFAULT_EXEMPT, ExemptPaths


@pytest.mark.parametrize("path", DEFAULT_EXEMPT)
def test_liveness_paths_are_exempt_by_default(path: str) -> None:
    assert ExemptPaths().match(path)


@pytest.mark.parametrize("path", ["/ready", "/", "", "/healthz/deep", "/healthzz", "/api/healthz"])
def test_other_paths_are_not(path: str) -> None:
    assert not ExemptPaths().match(path)


def test_a_trailing_slash_makes_no_difference() -> None:
    assert ExemptPaths(["/live"]).match("/live/")
    assert ExemptPaths(["/live/"]).match("/live")


def test_the_root_can_be_exempt() -> None:
    exempt = ExemptPaths(["/"])
    assert exempt.match("/")
    assert exempt.match("")
    assert not exempt.match("/x")


def test_a_final_star_is_a_prefix() -> None:
    exempt = ExemptPaths(["/static/*", "/live"])
    assert exempt.match("/static/a/b.css")
    assert exempt.match("/live")
    assert not exempt.match("/statics")


@pytest.mark.parametrize("path", ["/mnt/live", "/live"])
def test_matches_with_and_without_the_mount_point(path: str) -> None:
    assert ExemptPaths(["/live"]).match(path, "/mnt")
    assert ExemptPaths(["/mnt/live"]).match(path, "/mnt")


def test_a_mount_point_makes_nothing_else_exempt() -> None:
    assert not ExemptPaths(["/live"]).match("/mnt/jobs", "/mnt")


def test_a_callable_decides_by_the_path() -> None:
    exempt = ExemptPaths(lambda path: path.endswith(".ico"))
    assert exempt.match("/favicon.ico")
    assert not exempt.match("/live")


def test_nothing_need_be_exempt() -> None:
    assert not ExemptPaths([]).match("/livez")


def test_one_text_is_not_a_list_of_paths() -> None:
    with pytest.raises(ConfigurationError) as e:
        ExemptPaths("/live")
    assert str(e.value) == "exempt='/live' is one text; give a list of paths, such as ['/live']."


@pytest.mark.parametrize("pattern", ["live", "*", "", 5, None])
def test_a_pattern_that_can_match_no_path_is_refused(pattern: object) -> None:
    with pytest.raises(ConfigurationError) as e:
        ExemptPaths([pattern])  # type: ignore[list-item]
    assert str(e.value) == f"exempt path {pattern!r} can match no request; write it with a leading slash."
