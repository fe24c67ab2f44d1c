"""onnxruntime on the CPU: the census of its kernels, from its optimized graph and its profile."""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import onnx

from edgebuild import runner
from edgebuild.runtimes import _onnxruntime_profile
from edgebuild.runtimes._onnxruntime_profile import profile
from edgebuild.runtimes._onnxruntime_work import arithmetic, work_of
from edgebuild.runtimes._profiling import command
from edgebuild.samples import StoredSamples
from edgebuild.vocabulary.artifact import Artifact, KernelRun
from edgebuild.vocabulary.calibration import KernelSample, ProfileEffort, typical
from edgebuild.vocabulary.contracts import Device
from edgebuild.vocabulary.units import Seconds

# What the runtime computes inside the float convolution before it.
FUSED = {"Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"}
# Float convolutions in blocks of channels: their weights lose their names, and the kernel is named
# by the output that it had in the file.
BLOCKED = "_nchwc"
RUNS = 5


@dataclass(frozen=True)
class Onnxruntime:
    """The census runs with the session settings that the artifact is proven with."""

    name: ClassVar[str] = "onnxruntime"
    package: ClassVar[str] = "onnxruntime"
    module: ClassVar[str] = "onnxruntime"

    def version(self) -> str:
        return importlib.metadata.version(self.package)

    def kernels(self, artifact: Artifact, samples: StoredSamples) -> Iterator[KernelRun]:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "optimized.onnx"
            named = dict(zip(artifact.inputs, next(samples.rows()), strict=True))
            settings = runner.session_settings(artifact.settings)  # type: ignore[no-untyped-call]
            events = profile(str(artifact.path), settings, named, 1, RUNS, 0, str(path))
            optimized = onnx.load(path)
        weights = {
            node.name: tuple(_sites(node.input, artifact.weights)) for node in optimized.graph.node
        }
        outputs = _sites_by_output(onnx.load(artifact.path), artifact.weights)
        for event in events:
            name, work = event["name"], work_of(event)
            blocked = outputs.get(name.removesuffix(BLOCKED), ()) if BLOCKED in name else ()
            yield KernelRun(
                kernel=event["kernel"],
                sites=blocked or weights.get(name, ()),
                arithmetic=arithmetic(event),
                seconds=Seconds(statistics.median(event["hot"])),
                work=work,
            )

    def profiling(
        self,
        artifact: Artifact,
        samples: StoredSamples,
        device: Device,
        threads: int,
        effort: ProfileEffort,
    ) -> list[str]:
        settings = json.dumps(dict(artifact.settings))
        options = (json.dumps(artifact.inputs), settings, device.push(Path(runner.__file__)))
        return command(_onnxruntime_profile, artifact, samples, device, options, threads, effort)

    def timings(self, artifact: Artifact, said: str) -> Iterator[KernelSample]:
        for event in json.loads(said):
            hot, cold = typical(event["hot"]), typical(event["cold"])
            yield KernelSample(event["kernel"], work_of(event), hot, cold)


def _sites_by_output(
    model: onnx.ModelProto, weights: Mapping[str, str]
) -> Mapping[str, tuple[str, ...]]:
    """The sites that compute each tensor of the file, through what will be fused with them."""
    found: dict[str, tuple[str, ...]] = {}
    for node in model.graph.node:
        sites = tuple(_sites(node.input, weights))
        if node.op_type in FUSED:
            sites = found.get(node.input[0], ())
        found.update(dict.fromkeys(node.output, sites))
    return found


def _sites(inputs: Iterable[str], weights: Mapping[str, str]) -> Iterator[str]:
    """The sites whose weights a node reads; the runtime appends to names, as in `w_quantized`."""
    seen = set()
    for name in inputs:
        parts = name.split("_")
        for length in range(len(parts), 0, -1):
            site = weights.get("_".join(parts[:length]))
            if site is not None and site not in seen:
                seen.add(site)
                yield site
                break
