"""Whatever the path, the name of its class is what a regular expression says, which is easier to read than the C."""

import re

from hypothesis import given
from hypothesis import strategies as st

from resource_monitor.middleware.routes import route_class

# Numbers, UUIDs and other long hexadecimal names, and anything too long to be a name that a person gave.
IDENTIFIER = re.compile(r"\d+|[0-9a-fA-F]{8,}(?:-[0-9a-fA-F]+)*|.{33,}|(?=.*\d)[\w-]{16,}", re.ASCII)
LETTERS = st.sampled_from("0123456789abcdefABCDEFxyz_-.~%é漢\n\u2028\U0001f600\ud800")
SEGMENTS = st.one_of(
    st.text(LETTERS, max_size=40),
    st.text("0123456789", max_size=5),
    st.from_regex(r"[0-9a-f]{7,9}(-[0-9a-f]{0,4}){0,4}", fullmatch=True),
    st.text("ab1-_", min_size=14, max_size=18),
    st.text("aé", min_size=31, max_size=34),
    st.uuids().map(str),
)


@given(st.sampled_from(["GET", "PATCH", "WEBSOCKET", "RPC", ""]), st.lists(SEGMENTS, max_size=30))
def test_the_name_of_a_class(method: str, segments: list[str]) -> None:
    kept = ("{}" if method != "RPC" and IDENTIFIER.fullmatch(segment) else segment for segment in segments)
    assert route_class(method, "/".join(segments)) == f"{method} {'/'.join(kept)}"
