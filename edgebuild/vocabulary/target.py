"""A named device: its facts, the runtimes it has, and what an application may ask of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, cast

from edgebuild.vocabulary.calibration import Calibration
from edgebuild.vocabulary.errors import InvalidQuantity, did_you_mean
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.units import (
    Bytes,
    BytesPerSecond,
    Fraction,
    Hertz,
    OperationsPerSecond,
    Seconds,
    Watts,
    format_power,
    format_size,
    parse_power,
    parse_rate,
    parse_share,
    parse_size,
    parse_time,
)


class DeviceKind(StrEnum):
    PHONE = "phone"
    CAR = "car"
    ROBOT = "robot"
    HOST = "host"


class Activations(StrEnum):
    """The eight-bit type whose kernels are fast on a runtime and CPU."""

    INT8 = "int8"
    UINT8 = "uint8"


@dataclass(frozen=True)
class MemoryFacts:
    """Main memory; `app_share` is the part of it that one application may take.

    `mapped_share` is what it may take together with files that it maps, whose clean pages the
    system can drop; None where that is not known to be more.
    """

    ram: Bytes
    app_share: Fraction
    bandwidth: BytesPerSecond
    mapped_share: Fraction | None = None


@dataclass(frozen=True)
class ComputeFacts:
    """The processor that runs the network, with its peak rates (a MAC is two operations)."""

    isa: str
    cores: int
    clock: Hertz | None
    fp32: OperationsPerSecond
    int8: OperationsPerSecond


@dataclass(frozen=True)
class PowerFacts:
    """Whole-board draw, idle and under full load of the unit that runs the network."""

    idle: Watts | None = None
    active: Watts | None = None


@dataclass(frozen=True)
class RuntimeFacts:
    """One runtime on the device, and where its kernels are worth using.

    `kernels` lists, for each kind of layer and in order of preference, the precisions that run
    fast there; a precision that is missing is refused rather than run slowly.
    """

    name: str
    version: str
    threads: int
    activations: Activations
    channel_multiple: int
    kernels: Mapping[LayerKind, tuple[Precision, ...]]


class Preference(StrEnum):
    """What is chosen among those that breach no budget line."""

    SCORE = "score"
    LATENCY = "latency"
    KNEE = "knee"


@dataclass(frozen=True)
class Budget:
    """Wishes; None is no wish. `power` is above idle, at `rate` inferences a second.

    `storage` is the model file's size on the device, `download` what it takes in an archive.

    `accuracy_drop` is in points of the score below the network's own (1 % is 0.01) where that is
    from 0 to 1, and a share of any other score, such as a negative error.
    """

    latency_p99: Seconds | None = None
    memory: Bytes | None = None
    storage: Bytes | None = None
    download: Bytes | None = None
    power: Watts | None = None
    rate: Hertz | None = None
    accuracy_drop: Fraction | None = None

    @classmethod
    def parse(cls, **wishes: str) -> Budget:
        """Reads `Budget.parse(latency_p99="22 ms", power="3 W")`.

        Raises:
            InvalidQuantity: an unknown line, or a text that is no quantity of its kind.
        """
        return replace(cls(), **{line: _parse_line(line, text) for line, text in wishes.items()})

    def overridden_by(self, other: Budget) -> Budget:
        """This budget, with every line that the other one states taken from there."""
        stated = {
            line.name: getattr(other, line.name)
            for line in fields(other)
            if getattr(other, line.name) is not None
        }
        return replace(self, **stated)


BUDGET_PARSERS: Mapping[str, Callable[[str], float]] = {
    "latency_p99": parse_time,
    "memory": parse_size,
    "storage": parse_size,
    "download": parse_size,
    "power": parse_power,
    "rate": parse_rate,
    "accuracy_drop": parse_share,
}


EXAMPLES: Mapping[str, str] = {
    "latency_p99": "22 ms",
    "memory": "64 MB",
    "storage": "5 MB",
    "download": "2 MB",
    "power": "3 W",
    "rate": "2 /s",
    "accuracy_drop": "1 %",
}


def _parse_line(line: str, text: object) -> Any:
    if line not in BUDGET_PARSERS:
        raise InvalidQuantity(f"unknown budget line {line!r}.{did_you_mean(line, BUDGET_PARSERS)}")
    if not isinstance(text, str):
        raise InvalidQuantity(
            f'budget line {line}: {text!r} has no unit: write a text, as "{EXAMPLES[line]}"'
        )
    try:
        return BUDGET_PARSERS[line](text)
    except InvalidQuantity as error:
        raise InvalidQuantity(f"budget line {line}: {error}") from None


@dataclass(frozen=True)
class Target:
    """A device profile. `sources` maps a dotted fact ("memory.bandwidth") to where it is from.

    `calibration` is what a probe has timed on the device; None where nobody has probed one.
    """

    name: str
    title: str
    kind: DeviceKind
    memory: MemoryFacts
    compute: ComputeFacts
    runtimes: tuple[RuntimeFacts, ...]
    power: PowerFacts = PowerFacts()
    budget: Budget = Budget()
    sources: Mapping[str, str] = field(default_factory=dict)
    calibration: Calibration | None = None

    @property
    def app_memory(self) -> Bytes:
        """What one application may take of the device's RAM."""
        return Bytes(round(self.memory.ram * self.memory.app_share))

    def refuse_impossible(self, budget: Budget) -> None:
        """A wish that the device itself cannot grant is a mistake, not a constraint.

        Raises:
            InvalidQuantity: more memory than an application may take here, or power without the
                rate that it is meant at.
        """
        if budget.memory is not None and budget.memory > self.app_memory:
            raise InvalidQuantity(
                f"budget line memory: {format_size(budget.memory)} is more than the "
                f"{format_size(self.app_memory)} that an application may take of {self.name}"
            )
        if budget.power is not None and budget.rate is None:
            raise InvalidQuantity('budget line power: says nothing without a rate, as "2 /s"')
        idle, active = self.power.idle, self.power.active
        if None not in (budget.power, idle, active) and (
            # A tolerance for decimals: "3.5 W" - "0.5 W" must allow "3 W".
            cast(float, budget.power) > (cast(float, active) - cast(float, idle)) * (1 + 1e-9)
        ):
            raise InvalidQuantity(
                f"budget line power: {format_power(cast(float, budget.power))} above idle is more "
                f"than {self.name} can draw"
            )
        if budget.accuracy_drop is not None and budget.accuracy_drop > 1:
            raise InvalidQuantity("budget line accuracy_drop: is more than 100 %")
        for line in ("latency_p99", "memory", "storage", "download", "rate"):
            if getattr(budget, line) == 0:
                raise InvalidQuantity(f"budget line {line}: nothing takes zero")

    @property
    def is_this_machine(self) -> bool:
        """Whether what is measured here is measured on the target."""
        return self.kind is DeviceKind.HOST
