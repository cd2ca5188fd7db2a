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


@pytest.mark.parametrize(("path", "mount"), [("/mntlive", "/mnt"), ("/live/mnt", "/mnt"), ("/livemnt", "/mnt")])
def test_a_mount_point_ends_where_a_segment_does(path: str, mount: str) -> None:
    assert not ExemptPaths(["/live"]).match(path, mount)


@pytest.mark.parametrize("path", ["/mnt/live", "/live", "/live/"])
def test_a_mount_point_may_be_written_with_a_slash(path: str) -> None:
    assert ExemptPaths(["/live"]).match(path, "/mnt/")
    assert ExemptPaths(["/mnt/live"]).match(path, "/mnt/")


def test_the_mount_point_itself_is_the_root_of_what_is_below() -> None:
    exempt = ExemptPaths(["/"])
    assert exempt.match("/mnt", "/mnt")
    assert exempt.match("/mnt/", "/mnt")
    assert not exempt.match("/mnt/x", "/mnt")


def test_a_path_that_begins_like_its_mount_point_may_be_written_in_full() -> None:
    """WSGI leaves the mount point out of the path."""
    assert ExemptPaths(["/live/live"]).match("/live", "/live")
    assert ExemptPaths(["/a/a/live"]).match("/a/live", "/a")


def test_a_prefix_matches_with_and_without_the_mount_point() -> None:
    exempt = ExemptPaths(["/static/*", "/mnt/files/*"])
    for path in ("/static/x.css", "/mnt/static/x.css", "/files/x", "/mnt/files/x"):
        assert exempt.match(path, "/mnt")
    assert not exempt.match("/mnt/jobs", "/mnt")


def test_a_callable_that_fails_exempts_nothing_and_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    exempt = ExemptPaths(lambda path: path.no_such_thing)  # type: ignore[attr-defined]
    assert not exempt.match("/live", "/mnt")
    assert not exempt.match("/live")
    assert [record.getMessage() for record in caplog.records] == [
        "exempt failed for a path (AttributeError(\"'str' object has no attribute 'no_such_thing'\")), which is not "
        "exempt then."
    ]


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
