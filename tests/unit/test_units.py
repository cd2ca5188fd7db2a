import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resource_monitor.errors import ConfigurationError
from resource_monitor.units import Amount, format_size, parse_amount, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("123", 123),
        ("123b", 123),
        ("1k", 1024),
        ("1kb", 1000),
        ("1KiB", 1024),
        ("256m", 256 * 2**20),
        ("256MB", 256 * 10**6),
        (" 64 MiB ", 64 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("2gb", 2 * 10**9),
        ("1T", 2**40),
        ("1TB", 10**12),
        ("18446744073709551615", 2**64 - 1),
    ],
)
def test_reads_a_size_as_people_write_it(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_takes_a_number_as_bytes() -> None:
    assert parse_size(4096) == 4096


@pytest.mark.parametrize("value", ["", "MiB", "12 parsecs", "1e6", "-5", "٣MiB", "1.MiB", "1kk", "5%", None, 1.5, True])
def test_names_what_is_no_size_and_says_what_would_be_one(value: object) -> None:
    message = r'is not a size; give bytes as a number, or a size such as "64MiB".$'
    with pytest.raises(ConfigurationError, match=message) as e:
        parse_size(value)  # type: ignore[arg-type]
    assert repr(value) in str(e.value)


def test_where_a_share_would_do_the_remedy_names_one() -> None:
    with pytest.raises(ConfigurationError, match=r'"64MiB", or a share of the limit such as "5%".$'):
        parse_amount("lots")


@pytest.mark.parametrize("value", [2**64, "18446744073709551616", "16777216TiB", "99999999.5TiB"])
@pytest.mark.parametrize("parse", [parse_size, parse_amount])
def test_refuses_what_the_kernel_cannot_count(parse: Callable[[int | str], object], value: int | str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(repr(value))} is more bytes than any machine counts; "):
        parse(value)


def test_refuses_a_negative_number() -> None:
    with pytest.raises(ConfigurationError, match=r"^-1 is negative; give bytes"):
        parse_size(-1)


def test_a_size_is_the_same_amount_of_every_limit() -> None:
    assert parse_amount("64MiB") == Amount(None, 64 << 20, 64 << 20)
    assert parse_amount("64MiB").of(10) == 64 << 20
    assert parse_amount(64 << 20) == parse_amount("64MiB")


def test_a_percentage_is_a_share_of_the_limit() -> None:
    assert parse_amount(" 12.5 % ").of(1000) == 125
    assert parse_amount("100%").of(1000) == 1000


@pytest.mark.parametrize(("limit_mib", "amount_mib"), [(64, 16), (256, 16), (1024, 51.2), (65536, 512), (20480, 512)])
def test_a_clamp_keeps_the_share_between_its_bounds(limit_mib: int, amount_mib: float) -> None:
    assert parse_amount("clamp(16MiB, 5%, 512MiB)").of(limit_mib << 20) == int(amount_mib * 2**20)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("101%", "'101%' is more than the whole limit; give at most 100%."),
        (
            "clamp(2MiB, 5%, 1MiB)",
            "'clamp(2MiB, 5%, 1MiB)' has a lower bound above its upper bound; write clamp(least, wanted, most).",
        ),
        ("clamp(1MiB, 2MiB, 3MiB)", "'clamp(1MiB, 2MiB, 3MiB)' clamps no share; give a percentage in the middle."),
    ],
)
def test_says_in_one_sentence_what_is_wrong_with_an_amount(value: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as e:
        parse_amount(value)
    assert str(e.value) == message


@pytest.mark.parametrize("value", ["clamp(1MiB, 5%)", "clamp(1MiB, , 2MiB)", "clamp(1%, 5%, 2MiB)", "nan%", "-5%"])
def test_refuses_a_malformed_amount(value: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_amount(value)


@given(st.text(max_size=60))
def test_any_text_is_an_amount_or_a_configuration_error(text: str) -> None:
    try:
        amount = parse_amount(text)
    except ConfigurationError:
        return
    assert amount.of(2**40) >= 0


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3355443, "3.2 MiB"),
        (5 * 2**30, "5.0 GiB"),
        (3 * 2**40, "3.0 TiB"),
    ],
)
def test_writes_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text
