"""Probes a device: small networks, timed kernel by kernel and as a whole."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import TypeAdapter

from edgebuild import catalog
from edgebuild.cache import Cache, digest
from edgebuild.capture import capture
from edgebuild.samples import StoredSamples, store_split
from edgebuild.search.estimate import load_of
from edgebuild.search.measure import Effort, clock
from edgebuild.search.probe_blocks import Block, image_blocks, row_blocks, tiny_blocks, token_blocks
from edgebuild.search.probe_modules import SideBySide
from edgebuild.search.uniform import exporters_of, uniform
from edgebuild.vocabulary.artifact import Artifact, KernelWork
from edgebuild.vocabulary.calibration import (
    Calibration,
    KernelSample,
    Load,
    NetworkSample,
    ProbedRuntime,
    ProfileEffort,
    typical,
)
from edgebuild.vocabulary.contracts import Device, Exporter, Progress
from edgebuild.vocabulary.errors import InputError, told
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.program import Program
from edgebuild.vocabulary.recipe import Candidate
from edgebuild.vocabulary.target import RuntimeFacts, Target

SEED = 0
# Precisions whose kernels are others than those of fp32; the rest computes as fp32 does.
PROBED = (
    Precision.FP32,
    Precision.INT8_STATIC,
    Precision.INT8_DYNAMIC,
    Precision.INT4_WEIGHTS,
)
PROFILED = ProfileEffort(hot=12, cold=4)
TIMED = Effort(seconds=0.2, count=12)
# Fresh processes, apart in time: what disturbs one does not disturb all.
TURNS = 3


@dataclass(frozen=True)
class ProbeNetwork:
    """Some blocks to be timed in one file, and the precisions that they are timed in."""

    name: str
    blocks: Callable[[random.Random], list[Block]]
    precisions: tuple[Precision, ...] = PROBED


# Convolutions have no kernels of their own in the dynamic precisions, or slow ones.
IMAGE = (Precision.FP32, Precision.INT8_STATIC)
NETWORKS = (
    *(ProbeNetwork(f"images-{n}", lambda draw: image_blocks(draw, 11), IMAGE) for n in range(6)),
    *(ProbeNetwork(f"tokens-{n}", lambda draw: token_blocks(draw, 10)) for n in range(3)),
    ProbeNetwork("few rows", lambda draw: row_blocks(draw, 3)),
    ProbeNetwork("rows", lambda draw: row_blocks(draw, 10)),
    # About as many weights as caches hold: beside the others it tells their size.
    ProbeNetwork("many rows", lambda draw: row_blocks(draw, 40), IMAGE),
    ProbeNetwork("tiny", lambda draw: tiny_blocks(draw, 15)),
)


@dataclass(frozen=True)
class _Made:
    """A network of the probe as a runtime takes it."""

    name: str
    artifact: Artifact
    samples: StoredSamples
    load: Load


def probe(
    target: Target,
    device: Device,
    cache: Cache,
    progress: Progress,
    networks: Sequence[ProbeNetwork] = NETWORKS,
) -> Calibration:
    """What the kernels of the target's runtimes take on a device, on the target's threads.

    Raises:
        InputError: there is nothing to probe.
        DeviceError: the device was lost, or lacks a runtime.
    """
    probed = tuple(_runtimes(target, device, cache, progress, networks))
    if not any(runtime.networks for runtime in probed):
        raise InputError(f"nothing could be probed on {device.name}")
    taken_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Calibration(device.name, taken_at, probed)


def _runtimes(
    target: Target,
    device: Device,
    cache: Cache,
    progress: Progress,
    networks: Sequence[ProbeNetwork],
) -> Iterator[ProbedRuntime]:
    runtimes: dict[str, RuntimeFacts] = {}
    made: list[_Made] = []
    for exporter, runtime in exporters_of(target, catalog.names("exporters")):
        runtimes[runtime.name] = runtime
        made += _made(exporter, runtime, cache, progress, networks)
    timed: list[list[NetworkSample]] = [[] for _ in made]
    versions: dict[str, str] = {}
    with progress.step("Probing", total=TURNS * len(made)) as step:
        # All runtimes in every turn, so that turns lie apart.
        for _ in range(TURNS):
            for one, turns in zip(made, timed, strict=True):
                name = one.artifact.runtime
                sample, versions[name] = _timed(one, device, runtimes[name].threads)
                turns.append(sample)
                step.advance(f"{name} {one.name}")
    for name, runtime in runtimes.items():
        own = [
            turns for one, turns in zip(made, timed, strict=True) if one.artifact.runtime == name
        ]
        samples = tuple(map(undisturbed, own))
        yield ProbedRuntime(name, versions.get(name, ""), runtime.threads, samples)


def undisturbed(turns: Sequence[NetworkSample]) -> NetworkSample:
    """The fastest that each kernel and the whole were: anything else can only slow them down.

    A runtime may run kernels that do not wait for each other in another order in every process, so
    they are told by what they do. Of turns that ran other kernels than the first, only the whole.
    """
    first, *others = map(_by_work, turns)
    alike = [first, *(turn for turn in others if _works(turn) == _works(first))]
    kernels = tuple(
        replace(each[0], hot=min(one.hot for one in each), cold=min(one.cold for one in each))
        for each in zip(*alike, strict=True)
    )
    return replace(turns[0], kernels=kernels, seconds=min(turn.seconds for turn in turns))


def _by_work(turn: NetworkSample) -> list[KernelSample]:
    return sorted(turn.kernels, key=lambda kernel: (kernel.kernel, repr(kernel.work)))


def _works(kernels: Sequence[KernelSample]) -> list[tuple[str, KernelWork]]:
    return [(kernel.kernel, kernel.work) for kernel in kernels]


def _timed(made: _Made, device: Device, threads: int) -> tuple[NetworkSample, str]:
    """What one network takes, and the runtime that said so."""
    runtime = catalog.runtime(made.artifact.runtime)
    kernels = tuple(runtime.timings(made.artifact, made.samples, device, threads, PROFILED))
    whole = clock(made.artifact, made.samples, threads, device, TIMED)
    seconds = typical(whole.latencies)
    return NetworkSample(made.name, kernels, made.load, seconds), whole.runtime


def _made(
    exporter: Exporter,
    runtime: RuntimeFacts,
    cache: Cache,
    progress: Progress,
    networks: Sequence[ProbeNetwork],
) -> Iterator[_Made]:
    """The files to time; what a format cannot express is said and left out."""
    with progress.step(f"Preparing {runtime.name}", total=len(networks)) as step:
        for number, network in enumerate(networks):
            try:
                yield from _files(number, network, exporter, runtime, cache)
            except OSError:
                # The disk, not a network.
                raise
            except Exception as error:
                # Converters raise whatever they like.
                progress.say(f"{exporter.format} {network.name}: not probed: {told(error)}")
            step.advance(network.name)


def _files(
    number: int,
    network: ProbeNetwork,
    exporter: Exporter,
    runtime: RuntimeFacts,
    cache: Cache,
) -> Iterator[_Made]:
    """One file a precision that the runtime has kernels for."""
    kernels = [sorted(map(str, each)) for each in runtime.kernels.values()]
    key = digest(network.name, number, SEED, exporter.format, runtime.activations, kernels)
    folder = cache.entry("probe", key, lambda to: _export(to, number, network, exporter, runtime))
    form = TypeAdapter(Artifact)
    for made in sorted(folder.glob("*/artifact.json")):
        artifact = form.validate_json(made.read_bytes())
        samples = StoredSamples.open(next((folder / "samples").iterdir()))
        artifact = replace(artifact, path=made.parent / artifact.path.name)
        load = TypeAdapter(Load).validate_json((folder / "load.json").read_bytes())
        yield _Made(f"{network.name} {made.parent.name}", artifact, samples, load)


def _export(
    folder: Path, number: int, network: ProbeNetwork, exporter: Exporter, runtime: RuntimeFacts
) -> None:
    program, samples = _captured(number, network, Cache(folder))
    (folder / "load.json").write_bytes(TypeAdapter(Load).dump_json(load_of(program)))
    form = TypeAdapter(Artifact)
    for precision in network.precisions:
        recipe = uniform(precision, program.sites, exporter, runtime)
        if precision not in recipe.precisions.values():
            continue
        place = folder / precision
        place.mkdir()
        artifact = exporter.export(Candidate(recipe, program, samples.folder, runtime), place)
        (place / "artifact.json").write_bytes(form.dump_json(artifact))


def _captured(number: int, network: ProbeNetwork, cache: Cache) -> tuple[Program, StoredSamples]:
    """The same network every time: its shapes and numbers follow from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        blocks = network.blocks(random.Random(SEED + number))
        example = tuple(block.example for block in blocks)
        program = capture(SideBySide([block.network for block in blocks]).eval(), example)
    return program, store_split([(example, None)], example, "probe", cache)
