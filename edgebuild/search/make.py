"""Makes recipes into artifacts, and reads from the runtime which kernels they really run on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.version import InvalidVersion, Version
from pydantic import TypeAdapter

from edgebuild import catalog
from edgebuild.cache import digest, this_machine
from edgebuild.search.accuracy import ruin
from edgebuild.search.case import Case
from edgebuild.search.reshape import reshaped_program
from edgebuild.vocabulary.artifact import Arithmetic, Artifact, Census, Fallback, KernelRun
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.errors import (
    FellBackToFloat,
    InvalidTarget,
    PrecisionRefused,
    told,
)
from edgebuild.vocabulary.measurement import Figure
from edgebuild.vocabulary.program import Program
from edgebuild.vocabulary.recipe import Candidate, Recipe
from edgebuild.vocabulary.target import RuntimeFacts, Target
from edgebuild.vocabulary.trial import Trial


@dataclass(frozen=True)
class Made:
    """An artifact that runs on the kernels that its recipe asked for."""

    recipe: Recipe
    program: Program
    artifact: Artifact
    census: Census


def make(
    case: Case, recipes: Sequence[Recipe], progress: Progress
) -> tuple[list[Made], list[Trial]]:
    """Exports every recipe; a recipe that cannot be made becomes a failed trial with its reason.

    So does one whose network has lost what it was for, before it is exported.
    """
    made, failed = [], []
    with progress.step("Exporting", total=len(recipes)) as step:
        for recipe in recipes:
            try:
                program = reshaped_program(case, recipe.reshaped, progress)
                if lost := ruin(case, program) if recipe.reshaped else None:
                    failed.append(_ruined(recipe, lost))
                else:
                    made.append(_make(case, recipe, program))
            except InvalidTarget:
                raise
            except OSError:
                # The disk, not the recipe.
                raise
            except Exception as error:
                # Converters raise whatever they like; one recipe's failure is not the build's.
                failed.append(Trial(recipe, failure=told(error)))
            step.advance(f"{recipe.format} {recipe.name}")
    return made, failed


def _ruined(recipe: Recipe, lost: Figure) -> Trial:
    reason = f"not exported: its network has lost {lost.value:.0%} of the score ({lost.where})"
    return Trial(recipe, {"accuracy_drop": lost}, failure=reason)


def _make(case: Case, recipe: Recipe, program: Program) -> Made:
    artifact = _artifact(case, recipe, program)
    _refuse_old_runtime(artifact, runtime_facts(case.target, artifact.runtime))
    census = _census(case, recipe, artifact)
    _refuse_float_kernels(recipe, census, artifact.runtime)
    return Made(recipe, program, artifact, census)


def _artifact(case: Case, recipe: Recipe, program: Program) -> Artifact:
    exporter = catalog.exporter(recipe.format)
    runtime = runtime_facts(case.target, exporter.runtime)
    candidate = Candidate(recipe, program, case.calibration.folder, runtime)
    form = TypeAdapter(Artifact)

    def export(folder: Path) -> None:
        artifact = exporter.export(candidate, folder)
        (folder / "artifact.json").write_bytes(form.dump_json(artifact))

    key = digest(program.fingerprint, recipe.digest, case.calibration.digest, runtime.activations)
    folder = case.cache.entry("artifact", key, export)
    artifact = form.validate_json((folder / "artifact.json").read_bytes())
    return replace(artifact, path=folder / artifact.path.name)


def export(case: Case, recipe: Recipe) -> Artifact:
    """What the network as it is becomes by a recipe; from the cache where it was made before.

    Raises:
        Exception: whatever the converters raise, such as NotExportable.
    """
    return _artifact(case, recipe, case.program)


def _census(case: Case, recipe: Recipe, artifact: Artifact) -> Census:
    runtime = catalog.runtime(artifact.runtime)
    form = TypeAdapter(tuple[KernelRun, ...])

    def take(folder: Path) -> None:
        runs = tuple(runtime.kernels(artifact, case.calibration))
        (folder / "kernels.json").write_bytes(form.dump_json(runs))

    folder = case.cache.entry("census", digest(artifact.path.parent.name, this_machine()), take)
    runs = form.validate_json((folder / "kernels.json").read_bytes())
    return Census(runs, tuple(_fallbacks(recipe, runs)))


def runtime_facts(target: Target, name: str) -> RuntimeFacts:
    return next(runtime for runtime in target.runtimes if runtime.name == name)


def _refuse_old_runtime(artifact: Artifact, runtime: RuntimeFacts) -> None:
    """A release that is older than the artifact needs may compute it wrongly, and say nothing.

    Raises:
        PrecisionRefused: the target says that it has such a release.
    """
    package, _, release = runtime.version.rpartition(" ")
    package = package or catalog.runtime(runtime.name).package
    needed = artifact.minimum_runtime.get(package)
    if needed is None:
        named = " or ".join(f"{name} {since}" for name, since in artifact.minimum_runtime.items())
        raise PrecisionRefused(f"the target has {package} {release}; this needs {named}")
    try:
        is_old = Version(release) < Version(needed)
    except InvalidVersion:
        raise InvalidTarget(
            f"runtime.{runtime.name}.version: {runtime.version!r} is no release: "
            'write "2.3.0", or "tflite-runtime 2.14.0" for another package'
        ) from None
    if is_old:
        raise PrecisionRefused(
            f"the target has {package} {release}, which is not known to compute this rightly: "
            f"it needs {needed}"
        )


def _fallbacks(recipe: Recipe, runs: Sequence[KernelRun]) -> Iterator[Fallback]:
    """The kernels that computed in float beside integer ones, with the reason for each."""
    if not any(precision.is_integer for precision in recipe.precisions.values()):
        return
    reasons = {site.path: reason for site, reason in recipe.declined}
    for run in runs:
        if run.arithmetic is Arithmetic.FLOAT:
            yield Fallback(run.kernel, run.sites, _reason(run, reasons))


def _reason(run: KernelRun, reasons: Mapping[str, str]) -> str:
    declined = [reasons[site] for site in run.sites if site in reasons]
    if declined:
        return declined[0]
    return "chosen to stay float" if run.sites else "has no weights to quantize"


def _refuse_float_kernels(recipe: Recipe, census: Census, runtime: str) -> None:
    """Every layer that was asked to be integer must have run on an integer kernel.

    Raises:
        FellBackToFloat: it did not, by the runtime's own word.
    """
    wanted = {site.path for site, chosen in recipe.precisions.items() if chosen.is_integer}
    ran = {run.arithmetic: set[str]() for run in census.runs}
    for run in census.runs:
        ran[run.arithmetic].update(run.sites)
    # A layer may be several kernels, such as the gates of a recurrence: all must be integer.
    integer = ran.get(Arithmetic.INTEGER, set()) - ran.get(Arithmetic.FLOAT, set())
    missing = sorted(wanted - integer)
    if missing:
        kernels = {run.kernel for run in census.runs if set(run.sites) & set(missing)}
        named = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" * (len(missing) > 5))
        raise FellBackToFloat(
            f"{recipe.format} {recipe.name}: asked for integer kernels, but {runtime} ran {named} "
            f"on {', '.join(sorted(kernels)) or 'kernels that cannot be told apart'}"
        )
