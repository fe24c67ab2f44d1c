"""Records what was found as the manifest of a bundle."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from edgebuild.bundles.manifest import (
    ArtifactRecord,
    Golden,
    Manifest,
    PlannedRecord,
    SearchRecord,
    WorkloadRecord,
)
from edgebuild.bundles.pack import file_digest
from edgebuild.cache import LIBRARIES
from edgebuild.search.case import Case
from edgebuild.search.explain import explain
from edgebuild.search.found import Found
from edgebuild.search.frontier import cheapest, frontier, knee, volume
from edgebuild.search.judge import choose
from edgebuild.search.make import Made, runtime_facts
from edgebuild.search.prove import Proof
from edgebuild.search.score import loss_name


def record(case: Case, proof: Proof, found: Found, seconds: float, seed: int) -> Manifest:
    """Everything that is known about the proven artifact, and about what was tried besides."""
    made = proof.made
    return Manifest(
        edgebuild=importlib.metadata.version("edgebuild"),
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seed=seed,
        threads=runtime_facts(case.target, made.artifact.runtime).threads,
        # Thousands of timings are the profile's, not the bundle's: figures name the probe.
        target=replace(case.target, calibration=None),
        budget=case.budget,
        workload=_workload(case, proof),
        recipe=made.recipe,
        artifact=_artifact(made, proof),
        parity=proof.parity,
        census=made.census,
        figures=proof.figures,
        measurement=proof.measurement,
        verdict=proof.verdict,
        # Their kernels are not repeated: the shares are among the figures.
        tried=tuple(replace(trial, census=None) for trial in found.trials),
        search=_search(case, made, found, seconds),
        versions=_versions(),
    )


def _search(case: Case, made: Made, found: Found, seconds: float) -> SearchRecord:
    chosen = next(a for a in found.attempts if a.trial.recipe == made.recipe)
    menu = found.menus.get(made.recipe.format)
    picks = {
        "knee": knee(found.trials),
        "cheapest": cheapest(found.trials),
        "best": choose(found.trials),
    }
    return SearchRecord(
        evaluations=len(found.attempts),
        seconds=seconds,
        hypervolume=volume(found.trials),
        frontier=tuple(trial.recipe.digest for trial in frontier(found.trials)),
        sites=explain(menu, chosen.proposal, [a.proposal for a in found.attempts]) if menu else (),
        planned=tuple(_planned(found)),
        dropped=dict(found.survey.dropped) if found.survey else {},
        ran_out_of_time=found.ran_out_of_time,
        loss=loss_name(case.reference(case.validation)),
        **{name: trial.recipe.digest for name, trial in picks.items() if trial},
    )


def _planned(found: Found) -> Iterator[PlannedRecord]:
    for attempt, seen, latency, loss in found.expected():
        yield PlannedRecord(
            attempt.proposal.name,
            seen.format,
            latency,
            seen.measured_latency,
            loss,
            seen.measured_loss,
        )


def _workload(case: Case, proof: Proof) -> WorkloadRecord:
    splits = {
        "calibration": case.calibration,
        "validation": case.validation,
        "test": case.test,
    }
    score = case.workload.score
    named = getattr(score, "__name__", str(score)) if score else ""
    return WorkloadRecord(
        name=case.workload.name,
        fingerprint=case.program.fingerprint,
        samples={name: split.count for name, split in splits.items()},
        digests={name: split.digest for name, split in splits.items()},
        float_score={"validation": case.float_score, "test": proof.float_score},
        scored_by=", ".join(filter(None, (named, case.workload.stand_in))),
        notices=dict(case.workload.notices),
    )


def _artifact(made: Made, proof: Proof) -> ArtifactRecord:
    artifact = made.artifact
    return ArtifactRecord(
        file=artifact.path.name,
        sha256=file_digest(artifact.path),
        size=artifact.size,
        format=artifact.format,
        runtime=artifact.runtime,
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        settings=dict(artifact.settings),
        minimum_runtime=dict(artifact.minimum_runtime),
        precisions=Counter(str(precision) for precision in made.recipe.precisions.values()),
        golden=Golden(folder="golden", limit=proof.golden_limit),
    )


def _versions() -> dict[str, str]:
    found = {package: importlib.metadata.version(package) for package in LIBRARIES}
    return {"python": platform.python_version(), "platform": platform.platform(), **found}
