"""Whether a language model fits a device, by arithmetic: what it needs, how fast it can be."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from edgebuild.vocabulary.units import Bytes, Hertz, Joules


class Loading(StrEnum):
    """How the weights come into memory.

    REPACKED: the runtime reorders them into memory of its own, as it does by default. MAPPED: they
    lie in the file as the kernels want them, and stay the file's clean pages.
    """

    REPACKED = "repacked"
    MAPPED = "mapped"


@dataclass(frozen=True)
class Room:
    """What a device leaves one application.

    `anonymous` is memory of its own; `total` counts the pages of mapped files, too, which the
    system can drop and read again.
    """

    ram: Bytes
    anonymous: Bytes
    total: Bytes


@dataclass(frozen=True)
class Needs:
    """Bytes by what they are for, at a context's full length."""

    loading: Loading
    stored: Bytes
    mapped: Bytes
    repacked: Bytes
    cache: Bytes
    logits: Bytes
    activations: Bytes
    runtime: Bytes

    @property
    def anonymous(self) -> Bytes:
        return Bytes(self.repacked + self.cache + self.logits + self.activations + self.runtime)

    @property
    def total(self) -> Bytes:
        return Bytes(self.anonymous + self.mapped)

    def overrun(self, room: Room) -> float:
        """By which factor the worse of both exceeds its limit; at most 1 where it fits."""
        return max(self.anonymous / room.anonymous, self.total / room.total)


@dataclass(frozen=True)
class Speed:
    """Bounds and estimates, per second of decoded or prefilled tokens.

    Attributes:
        decode_bound: no decoder of this size is faster on this memory.
        decode: what runtimes reach of it.
        decode_sustained: what heat leaves of that on a phone; None elsewhere.
        prefill_bound: no faster by the processor's peak rate.
        energy_floor: what moving a token's bytes out of DRAM takes at least; systems take 5 to
            140 times as much.
    """

    bytes_per_token: Bytes
    decode_bound: Hertz
    decode: Hertz
    decode_sustained: Hertz | None
    prefill_bound: Hertz
    energy_floor: Joules


@dataclass(frozen=True)
class Option:
    """A model at one precision; `longest_context` is what would fit so, 0 where nothing does."""

    model: str
    precision: str
    cache: str
    context: int
    needs: Needs
    overrun: float
    longest_context: int
    speed: Speed

    @property
    def fits(self) -> bool:
        return self.overrun <= 1


@dataclass(frozen=True)
class Nearest:
    """Something else that fits, and what is given up for it."""

    change: str
    option: Option


@dataclass(frozen=True)
class Fit:
    """Every precision of a model on a device, the first that fits, and else what is nearest."""

    model: str
    family: str
    parameters: int
    active_parameters: int
    target: str
    context: int
    room: Room
    options: tuple[Option, ...]
    chosen: Option | None
    refusal: str
    nearest: tuple[Nearest, ...]
    notes: tuple[str, ...]
