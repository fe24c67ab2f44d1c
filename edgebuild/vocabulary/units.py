"""Quantities with their units: types inside, text such as "22 ms" outside."""

from __future__ import annotations

import math
import re
from typing import NewType

from edgebuild.vocabulary.errors import InvalidQuantity

Seconds = NewType("Seconds", float)
Bytes = NewType("Bytes", int)
Watts = NewType("Watts", float)
Joules = NewType("Joules", float)
Hertz = NewType("Hertz", float)
BytesPerSecond = NewType("BytesPerSecond", float)
OperationsPerSecond = NewType("OperationsPerSecond", float)
Fraction = NewType("Fraction", float)

# Decimal units as data sheets use them (GB = 1e9); the binary ones by their IEC names.
TIME = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
SIZE = {
    **{"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12},
    **{"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40},
}
POWER = {"uW": 1e-6, "mW": 1e-3, "W": 1.0, "kW": 1e3}
FREQUENCY = {"Hz": 1.0, "kHz": 1e3, "MHz": 1e6, "GHz": 1e9}
RATE = {"/s": 1.0, "/min": 1 / 60, "/h": 1 / 3600}
BANDWIDTH = {"MB/s": 1e6, "GB/s": 1e9, "TB/s": 1e12}
# One multiply-accumulate counts as two operations, as in every vendor's TOPS.
THROUGHPUT = {
    **{"MFLOP/s": 1e6, "GFLOP/s": 1e9, "TFLOP/s": 1e12, "GFLOPS": 1e9, "TFLOPS": 1e12},
    **{"MOP/s": 1e6, "GOP/s": 1e9, "TOP/s": 1e12, "GOPS": 1e9, "TOPS": 1e12},
}
SHARE = {"%": 0.01}

_QUANTITY = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\S*)\s*")


def parse_quantity(text: str, units: dict[str, float]) -> float:
    """Reads "22 ms" as 0.022, given the units that are allowed.

    Raises:
        InvalidQuantity: no number, no unit, an unknown unit, or a negative value.
    """
    examples = ", ".join(units)
    match = _QUANTITY.fullmatch(text)
    if not match:
        raise InvalidQuantity(f"{text!r} is not a quantity: write a number and a unit ({examples})")
    number, unit = match.groups()
    if not unit:
        raise InvalidQuantity(f"{text!r} has no unit: write one of {examples}")
    if unit not in units:
        raise InvalidQuantity(f"{text!r} has the unknown unit {unit!r}: write one of {examples}")
    value = float(number) * units[unit]
    if not math.isfinite(value):
        raise InvalidQuantity(f"{text!r} is too large")
    if value < 0:
        raise InvalidQuantity(f"{text!r} is negative")
    return value


def parse_time(text: str) -> Seconds:
    return Seconds(parse_quantity(text, TIME))


def parse_size(text: str) -> Bytes:
    return Bytes(round(parse_quantity(text, SIZE)))


def parse_power(text: str) -> Watts:
    return Watts(parse_quantity(text, POWER))


def parse_frequency(text: str) -> Hertz:
    return Hertz(parse_quantity(text, FREQUENCY))


def parse_rate(text: str) -> Hertz:
    return Hertz(parse_quantity(text, RATE))


def parse_bandwidth(text: str) -> BytesPerSecond:
    return BytesPerSecond(parse_quantity(text, BANDWIDTH))


def parse_throughput(text: str) -> OperationsPerSecond:
    return OperationsPerSecond(parse_quantity(text, THROUGHPUT))


def parse_share(text: str) -> Fraction:
    return Fraction(parse_quantity(text, SHARE))


def format_time(value: float) -> str:
    return _format(value, (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)))


def format_size(value: float) -> str:
    return _format(value, (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)))


def format_power(value: float) -> str:
    return _format(value, (("W", 1.0), ("mW", 1e-3)))


def format_energy(value: float) -> str:
    return _format(value, (("J", 1.0), ("mJ", 1e-3), ("µJ", 1e-6)))


def format_share(value: float) -> str:
    return f"{value * 100:.3g} %"


def format_rate(value: float) -> str:
    return f"{value:.4g} /s"


def _format(value: float, units: tuple[tuple[str, float], ...]) -> str:
    """Three significant digits in the largest unit that leaves at least one before the point."""
    for unit, scale in units:
        # What three digits would round up to the unit is shown in it.
        if abs(value) >= 0.9995 * scale:
            return f"{_three_digits(value / scale)} {unit}"
    unit, scale = units[-1]
    return f"{_three_digits(value / scale)} {unit}"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"
