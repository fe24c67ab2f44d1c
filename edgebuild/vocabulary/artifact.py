"""An exported file, and the census of the kernels that its runtime really ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from edgebuild.vocabulary.units import Bytes, Seconds


@dataclass(frozen=True)
class Artifact:
    """One model file.

    Attributes:
        path: the file.
        format: the exporter's name, "onnx" or "tflite".
        runtime: the runtime's name, "onnxruntime" or "litert".
        inputs: names of the inputs, in the network's order.
        outputs: names of the outputs, in the network's order.
        settings: what the runtime must be told to run it as proven, key by key.
        minimum_runtime: the oldest releases that compute it rightly, by package.
        caveat: what a time measured on another machine than the target must be read with.
        weights: the site of each stored weight, by its name in the file, in order of execution.
    """

    path: Path
    format: str
    runtime: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    minimum_runtime: Mapping[str, str] = field(default_factory=dict)
    caveat: str = ""
    weights: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> Bytes:
        return Bytes(self.path.stat().st_size)


class Arithmetic(StrEnum):
    """How a kernel computes; UNTYPED where the runtime does not say and it may be either."""

    INTEGER = "integer"
    FLOAT = "float"
    CONVERSION = "conversion"
    UNTYPED = "untyped"


@dataclass(frozen=True)
class KernelWork:
    """What a kernel has to do: all that its time depends on, besides the machine.

    Attributes:
        form: what it computes, as in "convolution 1x1"; of what is no layer the operator's name.
        numerics: what it computes in: a precision's name, or "conversion".
        macs: multiply-accumulates.
        weights: bytes of constants that it reads.
        read: bytes of activations that it reads.
        written: bytes that it puts out.
        inputs: channels or features that go into each number; of no layer the last axis of what
            it reads.
        outputs: channels or features of the result; of no layer the last axis of the result.
    """

    form: str
    numerics: str
    macs: int
    weights: Bytes
    read: Bytes
    written: Bytes
    inputs: int
    outputs: int

    @property
    def kind(self) -> str:
        """The class that it is timed and predicted with."""
        return f"{self.form} {self.numerics}"


@dataclass(frozen=True)
class KernelRun:
    """One operator as the runtime ran it: its kernel, the sites it computes, its mean time.

    A conversion quantizes or dequantizes at the border of an integer region. `work` is None where
    the runtime does not tell what it computed.
    """

    kernel: str
    sites: tuple[str, ...]
    arithmetic: Arithmetic
    seconds: Seconds
    work: KernelWork | None = None


@dataclass(frozen=True)
class Fallback:
    """A kernel that computed in float inside an artifact that has integer ones, and why."""

    kernel: str
    sites: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Census:
    """Every kernel of one run, read from the runtime's own graph or profile."""

    runs: tuple[KernelRun, ...]
    fallbacks: tuple[Fallback, ...] = ()

    @property
    def integer_share_of_kernels(self) -> float:
        """Of the kernels whose arithmetic is known."""
        typed = [run for run in self.runs if run.arithmetic is not Arithmetic.UNTYPED]
        integer = [run for run in typed if run.arithmetic is Arithmetic.INTEGER]
        return len(integer) / max(len(typed), 1)

    @property
    def integer_share_of_time(self) -> float:
        """Of the whole time, so that what is untyped or converts counts against it."""
        total = sum(run.seconds for run in self.runs)
        integer = sum(r.seconds for r in self.runs if r.arithmetic is Arithmetic.INTEGER)
        return integer / total if total else 0.0
