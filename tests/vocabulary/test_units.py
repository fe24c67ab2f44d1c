"""Quantities keep their value between text and number, and bad texts are refused."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebuild.vocabulary import units
from edgebuild.vocabulary.errors import InvalidQuantity

Parse = Callable[[str], float]
Format = Callable[[float], str]

PARSERS = {
    units.parse_time: units.TIME,
    units.parse_size: units.SIZE,
    units.parse_power: units.POWER,
    units.parse_frequency: units.FREQUENCY,
    units.parse_rate: units.RATE,
    units.parse_bandwidth: units.BANDWIDTH,
    units.parse_throughput: units.THROUGHPUT,
    units.parse_share: units.SHARE,
}
PAIRS = [
    (units.parse_time, units.format_time),
    (units.parse_power, units.format_power),
    (units.parse_rate, units.format_rate),
    (units.parse_share, units.format_share),
]
# Three digits are shown: at worst half of the third digit of 1.00 is lost.
SHOWN = 0.005 * (1 + 1e-9)


@pytest.mark.parametrize(("parse", "format_"), PAIRS)
@given(value=st.floats(min_value=1e-6, max_value=1e9))
def test_what_is_shown_reads_back_to_three_digits(
    parse: Parse, format_: Format, value: float
) -> None:
    assert parse(format_(value)) == pytest.approx(value, rel=SHOWN)


@given(value=st.integers(min_value=0, max_value=10**15))
def test_a_size_that_is_shown_reads_back_to_three_digits(value: int) -> None:
    assert units.parse_size(units.format_size(value)) == pytest.approx(value, rel=SHOWN)


@pytest.mark.parametrize(("parse", "known"), PARSERS.items())
@given(number=st.decimals(min_value=0, max_value=10**6, places=3), data=st.data())
def test_a_number_counts_in_its_unit(
    parse: Parse, known: dict[str, float], number: float, data: st.DataObject
) -> None:
    unit = data.draw(st.sampled_from(sorted(known)))
    expected = float(number) * known[unit]
    whole = 0.5 if parse is units.parse_size else 0
    assert parse(f"{number} {unit}") == pytest.approx(expected, rel=1e-12, abs=whole)
    assert parse(f" {number}{unit} ") == parse(f"{number} {unit}")


@pytest.mark.parametrize("parse", PARSERS)
@given(number=st.floats(min_value=0, max_value=1e12))
def test_a_number_without_a_unit_is_refused(parse: Parse, number: float) -> None:
    with pytest.raises(InvalidQuantity, match="has no unit: write one of"):
        parse(str(number))


@pytest.mark.parametrize(("parse", "known"), PARSERS.items())
@given(number=st.floats(min_value=1e-3, max_value=1e12))
def test_a_negative_quantity_is_refused(
    parse: Parse, known: dict[str, float], number: float
) -> None:
    with pytest.raises(InvalidQuantity, match="is negative"):
        parse(f"-{number} {next(iter(known))}")


@pytest.mark.parametrize(("parse", "known"), PARSERS.items())
@given(unit=st.text(alphabet="abcGMkWs/%", min_size=1, max_size=4))
def test_an_unknown_unit_is_refused_with_the_known_ones(
    parse: Parse, known: dict[str, float], unit: str
) -> None:
    if unit in known:
        assert parse(f"0 {unit}") == 0
        return
    listed = re.escape(", ".join(known))
    with pytest.raises(InvalidQuantity, match=f"unknown unit .*{listed}"):
        parse(f"1 {unit}")


@pytest.mark.parametrize("text", ["", "fast", "ms", "1,5 ms", "1 2 ms", "nan s", "inf s"])
def test_what_is_not_a_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidQuantity, match="is not a quantity"):
        units.parse_time(text)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (units.format_time(0.022), "22 ms"),
        (units.format_time(0.000_094), "94 µs"),
        (units.format_size(12_000_000_000), "12 GB"),
        (units.format_power(2.75), "2.75 W"),
        (units.format_energy(0.27), "270 mJ"),
        (units.format_share(0.01), "1 %"),
        (units.format_rate(2), "2 /s"),
    ],
)
def test_quantities_are_shown_in_the_largest_fitting_unit(shown: str, expected: str) -> None:
    assert shown == expected


def test_decimal_and_binary_sizes_differ() -> None:
    assert units.parse_size("1 GB") == 1_000_000_000
    assert units.parse_size("1 GiB") == 1_073_741_824
