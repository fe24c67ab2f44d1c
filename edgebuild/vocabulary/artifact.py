"""An exported file, and the census of the kernels that its runtime really ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
        weights: the site that each stored weight belongs to, by the weight's name in the file.
    """

    path: Path
    format: str
    runtime: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    minimum_runtime: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> Bytes:
        return Bytes(self.path.stat().st_size)


@dataclass(frozen=True)
class KernelRun:
    """One operator as the runtime ran it: its kernel, its sites, its median time.

    A conversion quantizes or dequantizes between an integer region and a float one.
    """

    kernel: str
    sites: tuple[str, ...]
    is_integer: bool
    is_conversion: bool
    seconds: Seconds


@dataclass(frozen=True)
class Fallback:
    """A kernel that computed in float inside an artifact that has integer ones, and why."""

    kernel: str
    sites: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Census:
    """Every kernel of one run, read from the runtime's own profile."""

    runs: tuple[KernelRun, ...]
    fallbacks: tuple[Fallback, ...] = ()

    @property
    def integer_share_of_kernels(self) -> float:
        return sum(run.is_integer for run in self.runs) / max(len(self.runs), 1)

    @property
    def integer_share_of_time(self) -> float:
        total = sum(run.seconds for run in self.runs)
        return sum(run.seconds for run in self.runs if run.is_integer) / total if total else 0.0
