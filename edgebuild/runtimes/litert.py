"""LiteRT on the CPU: the census of XNNPACK's kernels, from the runtime's own profile."""

from __future__ import annotations

import importlib.metadata
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from edgebuild.runtimes import _litert_profile
from edgebuild.runtimes._litert_work import works_of
from edgebuild.runtimes._profiling import command
from edgebuild.samples import StoredSamples
from edgebuild.vocabulary.artifact import Arithmetic, Artifact, KernelRun
from edgebuild.vocabulary.calibration import TICK, KernelSample, ProfileEffort, typical
from edgebuild.vocabulary.contracts import Device
from edgebuild.vocabulary.errors import DeviceError
from edgebuild.vocabulary.units import Seconds

# Spelled by XNNPACK's operator types. QD8, QDU8, QP8 are activations quantized at run time and
# multiplied as integers. QC8W, QC4W, QB4W only say how weights are stored: beside a float
# activation they are widened first. Elementwise operators ("Add (ND)") print no types.
INTEGER_TYPE = re.compile(r"\b(QC8|QS8|QU8|QD8|QDU8|QP8|QPI8|QPU8|S8|U8)\b")
FLOAT_TYPE = re.compile(r"\b(F32|F16|BF16|PF16|PF32)\b")
LAYER = re.compile(
    r"(Convolution|Fully Connected|Deconvolution|CONV_2D|CONV_3D|DEPTHWISE_CONV_2D"
    r"|FULLY_CONNECTED|TRANSPOSE_CONV)\b"
)
BUILTIN_CONVERSIONS = {"QUANTIZE", "DEQUANTIZE", "CAST"}
RUNS = 5
LOOK_UPS = ("EMBEDDING_LOOKUP", "GATHER")


@dataclass(frozen=True)
class Litert:
    """The census runs in a process of its own: the runtime aborts where it meets a bad model."""

    name: ClassVar[str] = "litert"
    package: ClassVar[str] = "ai-edge-litert"
    module: ClassVar[str] = "ai_edge_litert.interpreter"

    def version(self) -> str:
        return importlib.metadata.version(self.package)

    def kernels(self, artifact: Artifact, samples: StoredSamples) -> Iterator[KernelRun]:
        words = [sys.executable, _litert_profile.__file__, str(artifact.path), str(samples.folder)]
        done = subprocess.run(
            [*words, "1", str(RUNS), "0"], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
            raise DeviceError(f"LiteRT cannot profile {artifact.path.name}: {reason}")
        events = [
            (name, is_delegated, statistics.fmean(hot))
            for name, is_delegated, hot, _ in json.loads(done.stdout)
        ]
        sites = _sites_of_layers(events, artifact.weights)
        works = works_of(artifact.path, [name for name, _, _ in events])
        for number, (name, is_delegated, seconds) in enumerate(events):
            yield KernelRun(
                kernel=name,
                sites=sites.get(number, ()),
                arithmetic=_arithmetic(name, is_delegated),
                seconds=Seconds(seconds),
                work=works[number],
            )

    def profiling(
        self,
        artifact: Artifact,
        samples: StoredSamples,
        device: Device,
        threads: int,
        effort: ProfileEffort,
    ) -> list[str]:
        return command(_litert_profile, artifact, samples, device, (), threads, effort)

    def timings(self, artifact: Artifact, said: str) -> Iterator[KernelSample]:
        events = json.loads(said)
        works = works_of(artifact.path, [name for name, *_ in events])
        for (name, is_delegated, *runs), work in zip(events, works, strict=True):
            hot, cold = map(_centered, runs) if is_delegated else runs
            yield KernelSample(name, work, typical(hot), typical(cold))


def _centered(runs: Sequence[float]) -> list[float]:
    """XNNPACK counts whole microseconds: in the middle between those that are told and the next.

    Of what took less than one, nothing is known.
    """
    return [seconds + TICK / 2 if seconds else 0.0 for seconds in runs]


Event = tuple[str, bool, float]


def _sites_of_layers(
    events: Sequence[Event], weights: Mapping[str, str]
) -> Mapping[int, tuple[str, ...]]:
    """The site of each layer that ran.

    XNNPACK names kernels, not layers, and runs independent branches in an order of its own. So
    layers are told apart by their arithmetic first, and by the file's order among equals: where
    as many kernels ran on integers as the file stores integer layers, every one of these ran on
    one of those, whichever is which. Where the numbers differ, the order alone decides, so that
    a layer is named; empty where not even as many layers ran as the file holds.
    """
    ran = [number for number, event in enumerate(events) if LAYER.match(event[0])]
    stored = [words for words in weights if words.split(" ")[1] not in LOOK_UPS]
    if len(ran) != len(stored):
        return {}
    integer_ran = [n for n in ran if _arithmetic(*events[n][:2]) is Arithmetic.INTEGER]
    integer_stored = [
        words
        for words in stored
        if words.split(" ", 2)[2].startswith("int8-") or words.endswith("int4-weights")
    ]
    if len(integer_ran) == len(integer_stored):
        ran = [*integer_ran, *(n for n in ran if n not in integer_ran)]
        stored = [*integer_stored, *(w for w in stored if w not in integer_stored)]
    pairs = zip(ran, (weights[words] for words in stored), strict=True)
    return {number: (site,) for number, site in pairs if site}


def _arithmetic(name: str, is_delegated: bool) -> Arithmetic:
    if name in BUILTIN_CONVERSIONS or (is_delegated and name.startswith("Convert")):
        return Arithmetic.CONVERSION
    if is_delegated and INTEGER_TYPE.search(name):
        return Arithmetic.INTEGER
    if is_delegated and FLOAT_TYPE.search(name):
        return Arithmetic.FLOAT
    return Arithmetic.UNTYPED
