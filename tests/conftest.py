"""What tests share: networks of the zoo, captured, and the artifacts that are made of them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import loader
import numpy as np
import pytest
import torch
from hypothesis import settings
from torch.utils import _pytree as pytree
from zoo import ZOO, Specimen, samples

from edgebuild import arm64, catalog, runner
from edgebuild.cache import Cache
from edgebuild.capture import capture
from edgebuild.samples import StoredSamples, store_split
from edgebuild.vocabulary.artifact import Artifact, KernelRun
from edgebuild.vocabulary.offer import Choice
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.program import Program, Site
from edgebuild.vocabulary.recipe import Candidate, Recipe
from edgebuild.vocabulary.target import Activations, RuntimeFacts

# Other tests and builds may keep the machine busy; and a failure must be there again on the next
# run, so examples are drawn from the test's own name rather than by chance. Fifty each:
# the whole suite is to take less than twenty minutes.
settings.register_profile("patient", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("patient")

# Looked up before any test gives edgebuild a cache of its own.
ARM64_PARTS = arm64.find_parts()
CALIBRATION_SAMPLES = 32
HELD_OUT_SAMPLES = 8
# The type that is fast here; the other one is tried where it matters.
ACTIVATIONS = {"onnx": Activations.UINT8, "tflite": Activations.INT8}


@dataclass(frozen=True)
class Subject:
    """A network, captured, with samples to calibrate with and others to judge by."""

    specimen: Specimen
    program: Program
    calibration: StoredSamples
    held_out: StoredSamples
    # What the network itself says to the samples that were held out, one array an output.
    expected: tuple[np.ndarray, ...]


@dataclass
class Workshop:
    """Makes artifacts of the zoo's networks, each once a process."""

    folder: Path
    cache: Cache
    subjects: dict[str, Subject] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    runs: dict[Path, tuple[KernelRun, ...]] = field(default_factory=dict)
    outputs: dict[Path, list[np.ndarray]] = field(default_factory=dict)

    def subject(self, name: str) -> Subject:
        if name not in self.subjects:
            self.subjects[name] = self.study(ZOO[name]())
        return self.subjects[name]

    def study(self, specimen: Specimen) -> Subject:
        """Captures a network and draws its samples."""
        held_out = samples(specimen, HELD_OUT_SAMPLES, seed=1)
        with torch.no_grad():
            rows = [pytree.tree_leaves(specimen.network(*inputs)) for inputs, _ in held_out]
        return Subject(
            specimen,
            capture(specimen.network, specimen.example),
            self._store(specimen, samples(specimen, CALIBRATION_SAMPLES, seed=0)),
            self._store(specimen, held_out),
            tuple(torch.cat(column).numpy() for column in zip(*rows, strict=True)),
        )

    def _store(self, specimen: Specimen, split: object) -> StoredSamples:
        return store_split(split, specimen.example, specimen.name, self.cache)  # type: ignore[arg-type]

    def artifact(
        self, name: str, format_: str, precision: Precision, floating: Site | None = None
    ) -> Artifact:
        """The network with every layer that can be in one precision; `floating` stays in fp32."""
        recipe = uniform(self.subject(name).program, format_, precision, floating)
        key = f"{name}-{format_}-{recipe.digest[:12]}"
        if key not in self.artifacts:
            self.artifacts[key] = self.export(name, recipe, self.new_folder(key))
        return self.artifacts[key]

    def export(
        self, name: str, recipe: Recipe, folder: Path, activations: Activations | None = None
    ) -> Artifact:
        """Applies a recipe to a network, anew on every call."""
        return export(self.subject(name), recipe, folder, activations)

    def outputs_of(self, name: str, artifact: Artifact) -> list[np.ndarray]:
        """What the artifact says to the samples that were held out."""
        if artifact.path not in self.outputs:
            self.outputs[artifact.path] = outputs_of(artifact, self.subject(name).held_out)
        return self.outputs[artifact.path]

    def kernels_of(self, name: str, artifact: Artifact) -> tuple[KernelRun, ...]:
        """The census of the artifact."""
        if artifact.path not in self.runs:
            runtime = catalog.runtime(artifact.runtime)
            kernels = runtime.kernels(artifact, self.subject(name).held_out)
            self.runs[artifact.path] = tuple(kernels)
        return self.runs[artifact.path]

    def new_folder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        return folder


def export(
    subject: Subject, recipe: Recipe, folder: Path, activations: Activations | None = None
) -> Artifact:
    """Makes an artifact without a home of its own."""
    exporter = catalog.exporter(recipe.format)
    activations = activations or ACTIVATIONS.get(recipe.format, Activations.INT8)
    runtime = RuntimeFacts(exporter.runtime, "any", 1, activations, 1, {})
    candidate = Candidate(recipe, subject.program, subject.calibration.folder, runtime)
    return exporter.export(candidate, folder)


def uniform(
    program: Program, format_: str, precision: Precision, floating: Site | None = None
) -> Recipe:
    """One precision wherever the format has a kernel for it."""
    exporter = catalog.exporter(format_)
    chosen = {
        site: precision if not exporter.refusal(site.kind, precision) else Precision.FP32
        for site in program.sites
    }
    if floating is not None:
        chosen[floating] = Precision.FP32
    return recipe_of(format_, chosen)


def recipe_of(format_: str, precisions: Mapping[Site, Precision]) -> Recipe:
    choices = tuple((site, Choice("quantize", option)) for site, option in precisions.items())
    return Recipe("a test's", format_, choices)


def write_manifest(artifact: Artifact, path: Path, **more: object) -> Path:
    """What the runner needs to know of an artifact."""
    record = {
        "file": str(artifact.path),
        "format": artifact.format,
        "inputs": artifact.inputs,
        "outputs": artifact.outputs,
        "settings": dict(artifact.settings),
        "minimum_runtime": dict(artifact.minimum_runtime),
        **more,
    }
    path.write_text(json.dumps({"threads": 1, "artifact": record}))
    return path


def outputs_of(artifact: Artifact, stored: StoredSamples) -> list[np.ndarray]:
    """What an artifact says to samples, in a fresh process: a bad model may end it."""
    manifest = write_manifest(artifact, artifact.path.parent / "manifest.json")
    out = artifact.path.parent / "outputs"
    words = ["--manifest", str(manifest), "outputs", str(stored.folder), str(out)]
    assert loader.exit_code(words) == 0
    return [np.array(array) for array in runner.arrays(str(out), "output")]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives all tests of one network to one worker, which converts it once; else of one file."""
    from xdist.scheduler import LoadScopeScheduling

    class ByNetwork(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            found = re.search(rf"\[(?:.*-)??({'|'.join(ZOO)})(?:-.*)?\]$", nodeid)
            return found[1] if found else nodeid.split("::")[0]

    return ByNetwork(config, log)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """What a test draws without a generator of its own is the same in every run."""
    torch.manual_seed(0)


@pytest.fixture
def users_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What emulates ARM64, from the user's cache, whichever cache the test works in."""
    monkeypatch.setattr(arm64, "find_parts", lambda: ARM64_PARTS)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other over tiny networks only take longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """Every worker has its own folder of artifacts; all of them share what conversions cache."""
    own = tmp_path_factory.getbasetemp()
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    root = (own.parent if is_worker else own) / "edgebuild-cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEBUILD_CACHE", str(root))
        yield Workshop(tmp_path_factory.mktemp("artifacts"), Cache(root))
