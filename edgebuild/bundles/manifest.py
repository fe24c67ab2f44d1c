"""The manifest of a bundle: what is in it, what was measured, and on what grounds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from edgebuild.vocabulary.artifact import Census
from edgebuild.vocabulary.errors import InvalidBundle
from edgebuild.vocabulary.measurement import Evidence, Figure, Measurement
from edgebuild.vocabulary.recipe import Recipe
from edgebuild.vocabulary.target import Budget, Target
from edgebuild.vocabulary.trial import Parity, Trial
from edgebuild.vocabulary.verdict import Verdict

SCHEMA = 2
FILE = "manifest.json"


@dataclass(frozen=True)
class Golden:
    """Inputs and the outputs that the artifact gave for them, in a folder of the bundle.

    `limit` is the largest relative error that another machine's kernels may add.
    """

    folder: str
    limit: float


@dataclass(frozen=True)
class ArtifactRecord:
    """The model file, and what a runtime must know to run it as it was proven."""

    file: str
    sha256: str
    size: int
    format: str
    runtime: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: Mapping[str, str]
    minimum_runtime: Mapping[str, str]
    precisions: Mapping[str, int]
    golden: Golden


@dataclass(frozen=True)
class WorkloadRecord:
    """The workload's identity: its network's fingerprint, and each split's size and content."""

    name: str
    fingerprint: str
    samples: Mapping[str, int]
    digests: Mapping[str, str]
    float_score: Mapping[str, float]
    scored_by: str
    notices: Mapping[str, str]


@dataclass(frozen=True)
class SiteRecord:
    """What one site got: the planner's nats of KL and seconds for that choice.

    `better` is the choice that would save the most loss for its time there (empty where the site
    has the best already): it `costs` so many seconds more and `saves` so many nats; `untaken` says
    what came of it where it costs nothing. `is_shared` where the time is that of layers which have
    records of their own.
    """

    path: str
    choice: str
    loss: float
    seconds: float
    better: str = ""
    costs: float = 0.0
    saves: float = 0.0
    untaken: str = ""
    is_shared: bool = False


@dataclass(frozen=True)
class PlannedRecord:
    """What the planner expected of a candidate, and what came of it: seconds and nats of KL.

    On another target than this machine the latency that came of it is itself predicted.
    """

    recipe: str
    format: str
    planned_latency: float
    measured_latency: float
    planned_loss: float
    measured_loss: float


@dataclass(frozen=True)
class SearchRecord:
    """How the search went.

    `knee`, `cheapest` and `best` are digests of recipes among those that were tried: the knee of
    the frontier, the fastest and the best score that keep the budget. `hypervolume` is how
    often the frontier halves the float network's latency, on average over ten points of score.
    `dropped` holds offers that could not be carried out, with the reasons. `ran_out_of_time` says
    that the search ended because its time was up, not because it was done; `loss` is what losses
    are, where it is not the KL of classes.
    """

    evaluations: int
    seconds: float
    hypervolume: float
    frontier: tuple[str, ...]
    knee: str = ""
    cheapest: str = ""
    best: str = ""
    sites: tuple[SiteRecord, ...] = ()
    planned: tuple[PlannedRecord, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)
    ran_out_of_time: bool = False
    loss: str = ""


@dataclass(frozen=True)
class ArmRecord:
    """What the artifact computes on an ARM64 processor, beside its golden outputs; never a time.

    `features` are the processor's, `kernels` the library that computed. Of `values` output values
    so many are `differing` in a bit; `relative_error` is the largest difference over the largest
    magnitude of the same output, of which one rounding in fp32 is about 6e-8.
    """

    where: str
    features: tuple[str, ...]
    runtime: str
    kernels: str
    values: int
    differing: int
    relative_error: float
    evidence: Evidence = Evidence.EMULATED

    @property
    def is_bit_equal(self) -> bool:
        return self.differing == 0


@dataclass(frozen=True)
class Manifest:
    """Everything that is known about a bundle; `figures` are of the test split.

    `files` holds the SHA-256 of every other file; `tried` all candidates, on the validation
    split; `arm` what was computed on emulated ARM64 processors, if that was asked for.
    """

    edgebuild: str
    created_at: str
    seed: int
    threads: int
    target: Target
    budget: Budget
    workload: WorkloadRecord
    recipe: Recipe
    artifact: ArtifactRecord
    parity: Parity
    census: Census
    figures: Mapping[str, Figure]
    measurement: Measurement
    verdict: Verdict
    tried: tuple[Trial, ...]
    search: SearchRecord
    versions: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)
    arm: tuple[ArmRecord, ...] = ()
    schema: int = SCHEMA


@dataclass(frozen=True)
class Bundle:
    """A folder with an artifact, its proof and its loader."""

    path: Path
    manifest: Manifest

    @property
    def verdict(self) -> Verdict:
        return self.manifest.verdict


_FORM = TypeAdapter(Manifest)


def dump_manifest(manifest: Manifest) -> bytes:
    return _FORM.dump_json(manifest, indent=1)


def is_bundle(folder: Path) -> bool:
    """Whether the folder is one that this module could have written."""
    try:
        found = json.loads((folder / FILE).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"edgebuild", "schema", "files"} <= set(found)


def load_bundle(folder: Path) -> Bundle:
    """Reads a bundle's manifest.

    Raises:
        InvalidBundle: no bundle, a damaged manifest, or one of another schema.
    """
    path = folder / FILE
    try:
        manifest = _FORM.validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidBundle(
            f"{folder} is no bundle: {FILE} cannot be read ({error.strerror}). "
            "Give the folder that `edgebuild build -o` wrote"
        ) from None
    except ValidationError as error:
        raise damaged(path, error) from None
    _refuse_paths_outside(folder, manifest)
    if manifest.schema != SCHEMA:
        raise InvalidBundle(f"{path} has schema {manifest.schema}; this edgebuild reads {SCHEMA}")
    return Bundle(folder, manifest)


def damaged(path: Path, error: ValidationError) -> InvalidBundle:
    """A manifest that is not of its form, with the first place where it is not."""
    first = error.errors(include_url=False)[0]
    place = "".join(f"{part}: " for part in first["loc"])
    return InvalidBundle(
        f"{path} is damaged or from another version of edgebuild: {place}{first['msg']}"
    )


def _refuse_paths_outside(folder: Path, manifest: Manifest) -> None:
    """What a manifest names must lie inside its bundle."""
    artifact = manifest.artifact
    for name in (artifact.file, artifact.golden.folder, *manifest.files):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InvalidBundle(f"{folder / FILE} names {name!r}, which is outside the bundle")
