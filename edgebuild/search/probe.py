"""Probes a device: small networks, timed kernel by kernel and as a whole."""

from __future__ import annotations

import datetime
import itertools
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import TypeAdapter

from edgebuild import batch, catalog
from edgebuild.cache import Cache, digest
from edgebuild.capture import capture
from edgebuild.samples import StoredSamples, store_split
from edgebuild.search.estimate import load_of
from edgebuild.search.measure import Effort, clocked, clocking
from edgebuild.search.probe_blocks import (
    Block,
    chained_blocks,
    image_blocks,
    row_blocks,
    tiny_blocks,
    token_blocks,
)
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
from edgebuild.vocabulary.contracts import Completed, Device, Exporter, Progress
from edgebuild.vocabulary.errors import DeviceError, InputError, told
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.program import Program
from edgebuild.vocabulary.recipe import Candidate
from edgebuild.vocabulary.target import RuntimeFacts, Target
from edgebuild.vocabulary.units import Seconds

SEED = 0
# Precisions whose kernels are others than those of fp32; the rest computes as fp32 does.
PROBED = (
    Precision.FP32,
    Precision.INT8_STATIC,
    Precision.INT8_DYNAMIC,
    Precision.INT4_WEIGHTS,
)
PROFILED = ProfileEffort(hot=12, cold=4)
# Short, and hardly warmed up: the profile just before has had the clock rise.
TIMED = Effort(seconds=0.1, count=12, warm_up=0.02)
# Fresh processes, apart in time: what disturbs one does not disturb all.
TURNS = 3
# Networks of one command there: each job over a link costs seconds, and all at once show no
# progress.
AT_ONCE = 8
DEADLINE = Seconds(300.0)


@dataclass(frozen=True)
class ProbeNetwork:
    """Some blocks to be timed in one file, and the precisions that they are timed in."""

    name: str
    blocks: Callable[[random.Random], list[Block]]
    precisions: tuple[Precision, ...] = PROBED


# Convolutions have no kernels of their own in the dynamic precisions, or slow ones.
IMAGE = (Precision.FP32, Precision.INT8_STATIC)
NETWORKS = (
    *(ProbeNetwork(f"images-{n}", lambda draw: image_blocks(draw, 12), IMAGE) for n in range(6)),
    *(ProbeNetwork(f"tokens-{n}", lambda draw: token_blocks(draw, 10)) for n in range(3)),
    ProbeNetwork("few rows", lambda draw: row_blocks(draw, 3)),
    ProbeNetwork("rows", lambda draw: row_blocks(draw, 10)),
    # About as many weights as caches hold: beside the others it tells their size.
    ProbeNetwork("many rows", lambda draw: row_blocks(draw, 40), IMAGE),
    ProbeNetwork("tiny", lambda draw: tiny_blocks(draw, 15)),
    ProbeNetwork(
        "tiny chain", lambda draw: chained_blocks(draw, 15, width=8, times=2, side=4), IMAGE
    ),
    ProbeNetwork(
        "small chain", lambda draw: chained_blocks(draw, 12, width=16, times=3, side=7), IMAGE
    ),
    ProbeNetwork("chain", lambda draw: chained_blocks(draw, 10, width=32, times=6, side=14), IMAGE),
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
    with tempfile.TemporaryDirectory() as scratch:
        trials = list(_trials(made, runtimes, device, Path(scratch), progress))
        turns = list(_turns(trials, device, progress))
    for name, runtime in runtimes.items():
        own = [taken for taken in zip(*turns, strict=True) if taken[0].runtime == name]
        version = own[0][0].version if own else ""
        samples = tuple(undisturbed([one.sample for one in taken]) for taken in own)
        yield ProbedRuntime(name, version, runtime.threads, samples)


@dataclass(frozen=True)
class _Trial:
    """A network on the device, and the two programs there that time it: by kernels, and whole."""

    made: _Made
    profiling: Sequence[str]
    clocking: Sequence[str]


@dataclass(frozen=True)
class _Taken:
    """What one turn has shown of a network, and the runtime that said so."""

    sample: NetworkSample
    runtime: str
    version: str


def _trials(
    made: Sequence[_Made],
    runtimes: Mapping[str, RuntimeFacts],
    device: Device,
    scratch: Path,
    progress: Progress,
) -> Iterator[_Trial]:
    """Brings every network to the device, once for all turns."""
    with progress.step("Copying", total=len(made)) as step:
        for number, one in enumerate(made):
            artifact, samples = one.artifact, one.samples
            threads = runtimes[artifact.runtime].threads
            folder = scratch / str(number)
            folder.mkdir()
            runtime = catalog.runtime(artifact.runtime)
            profiling = runtime.profiling(artifact, samples, device, threads, PROFILED)
            whole = clocking(artifact, samples, threads, device, TIMED, folder)
            yield _Trial(one, profiling, whole)
            step.advance(one.name)


def _turns(
    trials: Sequence[_Trial], device: Device, progress: Progress
) -> Iterator[Sequence[_Taken]]:
    """All networks of all runtimes in every turn, so that turns lie apart."""
    parts = [
        part
        for _, own in itertools.groupby(trials, lambda trial: trial.made.artifact.runtime)
        for part in _parts(list(own))
    ]
    with progress.step("Probing", total=TURNS * len(parts)) as step:
        for _ in range(TURNS):
            turn: list[_Taken] = []
            for part in parts:
                turn += _taken(part, device)
                step.advance(f"{turn[-1].runtime} {turn[-1].sample.name}")
            yield turn


def _parts(trials: Sequence[_Trial]) -> Iterator[Sequence[_Trial]]:
    for start in range(0, len(trials), AT_ONCE):
        yield trials[start : start + AT_ONCE]


def _taken(trials: Sequence[_Trial], device: Device) -> Iterator[_Taken]:
    """What networks of one runtime take, timed one after the other."""
    runtime = catalog.runtime(trials[0].made.artifact.runtime)
    programs = [words for trial in trials for words in (trial.profiling, trial.clocking)]
    said = iter(_said(["numpy", runtime.module], programs, device))
    for trial in trials:
        kernels = tuple(runtime.timings(trial.made.artifact, next(said)))
        whole = clocked(next(said))
        seconds = typical(whole.latencies)
        sample = NetworkSample(trial.made.name, kernels, trial.made.load, seconds)
        yield _Taken(sample, runtime.name, whole.runtime)


def _said(imports: Sequence[str], programs: Sequence[Sequence[str]], device: Device) -> list[str]:
    """What each program has printed.

    Raises:
        DeviceError: one of them has failed; says why.
    """
    with tempfile.TemporaryDirectory() as scratch:
        jobs = Path(scratch) / "jobs.json"
        jobs.write_text(json.dumps({"imports": imports, "programs": programs}))
        words = ("python", device.push(Path(batch.__file__)), device.push(jobs))
        done = device.run(words, Seconds(DEADLINE * len(programs)))
    if done.returncode != 0:
        raise DeviceError(f"{device.name} cannot be probed: {done.reason}")
    ended = [Completed(**one) for one in json.loads(done.stdout)]
    for one in ended:
        if one.returncode != 0:
            raise DeviceError(f"{device.name} cannot be probed: {one.reason}")
    return [one.stdout for one in ended]


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
