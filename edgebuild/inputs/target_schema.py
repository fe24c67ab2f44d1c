"""The tables and keys that a target profile may have, and what is said of others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StrictInt,
    StrictStr,
    ValidationError,
)

from edgebuild.inputs.toml_document import Document, Key, Tables
from edgebuild.vocabulary.errors import InvalidQuantity, did_you_mean
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.target import Activations, DeviceKind
from edgebuild.vocabulary.units import (
    Bytes,
    BytesPerSecond,
    Fraction,
    Hertz,
    OperationsPerSecond,
    Seconds,
    Watts,
    parse_bandwidth,
    parse_frequency,
    parse_power,
    parse_rate,
    parse_share,
    parse_size,
    parse_throughput,
    parse_time,
)


class _UnusableError(ValueError):
    """A value that a profile must not have; pydantic collects it."""


def _quantity(parse: Callable[[str], float], example: str, *, zero: bool = False) -> PlainValidator:
    """A text such as the example; above zero, unless zero is a possible value."""

    def read(value: object) -> float:
        if not isinstance(value, str):
            raise _UnusableError(
                f'{value!r} is no quantity: write a text with its unit, as "{example}"'
            )
        try:
            number = parse(value)
        except InvalidQuantity as error:
            raise _UnusableError(str(error)) from None
        except OverflowError:
            raise _UnusableError(f"{value!r} is too large") from None
        if number == 0 and not zero:
            raise _UnusableError(f"{value!r} is not above zero")
        if number == float("inf"):
            raise _UnusableError(f"{value!r} is too large")
        return number

    return PlainValidator(read)


def _positive(value: int) -> int:
    if value < 1:
        raise _UnusableError(f"{value} is not above zero")
    return value


def _share_of_ram(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _UnusableError(f"{value!r} is no fraction: write a bare number, as 0.7")
    if not 0 < value <= 1:
        raise _UnusableError(f"{value!r} is not a fraction above 0 and at most 1")
    return float(value)


def _not_empty(value: str) -> str:
    if not value.strip():
        raise _UnusableError("is empty")
    return value


Text = Annotated[StrictStr, AfterValidator(_not_empty)]
Count = Annotated[StrictInt, AfterValidator(_positive)]
Size = Annotated[Bytes, _quantity(parse_size, "8 GB")]
Bandwidth = Annotated[BytesPerSecond, _quantity(parse_bandwidth, "17 GB/s")]
Clock = Annotated[Hertz, _quantity(parse_frequency, "2.4 GHz")]
FloatRate = Annotated[OperationsPerSecond, _quantity(parse_throughput, "150 GFLOP/s")]
IntegerRate = Annotated[OperationsPerSecond, _quantity(parse_throughput, "600 GOP/s")]
Power = Annotated[Watts, _quantity(parse_power, "3 W")]
Time = Annotated[Seconds, _quantity(parse_time, "22 ms")]
PerSecond = Annotated[Hertz, _quantity(parse_rate, "2 /s")]
Share = Annotated[Fraction, _quantity(parse_share, "1 %", zero=True)]
RuntimeName = Literal["onnxruntime", "litert"]
Kernels = tuple[Precision, ...]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)


class _Memory(_Table):
    ram: Size
    app_share: Annotated[Fraction, PlainValidator(_share_of_ram)]
    bandwidth: Bandwidth
    mapped_share: Annotated[Fraction, PlainValidator(_share_of_ram)] | None = None


class _Compute(_Table):
    isa: Text
    cores: Count
    clock: Clock | None = None
    fp32: FloatRate
    int8: IntegerRate


class Runtime(_Table):
    version: Text
    threads: Count
    activations: Activations
    channel_multiple: Count
    convolution: Kernels = ()
    depthwise: Kernels = ()
    transposed: Kernels = ()
    linear: Kernels = ()
    recurrent: Kernels = ()
    embedding: Kernels = ()


class _Power(_Table):
    idle: Power | None = None
    active: Power | None = None


class _Budget(_Table):
    latency_p99: Time | None = None
    memory: Size | None = None
    storage: Size | None = None
    download: Size | None = None
    power: Power | None = None
    rate: PerSecond | None = None
    accuracy_drop: Share | None = None


class _Calibration(_Table):
    file: Text


class Profile(_Table):
    title: Text
    kind: DeviceKind
    memory: _Memory
    compute: _Compute
    runtime: Annotated[dict[RuntimeName, Runtime], Field(min_length=1)]
    power: _Power = Field(default_factory=_Power)
    budget: _Budget = Field(default_factory=_Budget)
    calibration: _Calibration | None = None
    sources: dict[str, Text]


def checked_profile(document: Document, tables: Tables) -> Profile:
    """The tables as a profile, every value in its unit.

    Raises:
        InvalidTarget: a key that is unknown or missing, or a value that cannot be.
    """
    try:
        return Profile.model_validate(tables)
    except ValidationError as error:
        # A misspelled key is also a missing one: the misspelling explains both.
        problems = error.errors(include_url=False)
        found = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        key = tuple(part for part in found["loc"] if isinstance(part, str) and part != "[key]")
        raise document.refusal(key, _reason(key, found)) from None


def _reason(key: Key, problem: Mapping[str, Any]) -> str:
    """Says in our words what pydantic found."""
    value = problem["input"]
    match problem["type"]:
        case "extra_forbidden":
            return f"unknown key.{did_you_mean(key[-1], _keys_beside(key))}".rstrip(".")
        case "missing" | "too_short" if key == ("runtime",):
            return "no runtime: write a table " + " or ".join(
                f"[runtime.{name}]" for name in get_args(RuntimeName)
            )
        case "missing":
            return "missing key"
        case "enum" | "literal_error":
            known = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
            nearest = did_you_mean(value, known) if isinstance(value, str) else ""
            return f"{value!r} is not one of {', '.join(known)}.{nearest}".rstrip(".")
        case "model_type" | "dict_type":
            return f"{value!r} is not a table"
        case "int_type":
            return f"{value!r} is not a whole number: write it bare, without quotes or unit"
        case "string_type":
            return f"{value!r} is not a text: write it in quotes"
        case "tuple_type":
            return f'{value!r} is not a list, as ["int8-static", "fp32"]'
    return str(problem["msg"]).removeprefix("Value error, ")


def _keys_beside(key: Key) -> Iterable[str]:
    tables: dict[str, type[_Table]] = {
        "memory": _Memory,
        "compute": _Compute,
        "runtime": Runtime,
        "power": _Power,
        "budget": _Budget,
        "calibration": _Calibration,
    }
    return tables[key[0]].model_fields if len(key) > 1 else Profile.model_fields
