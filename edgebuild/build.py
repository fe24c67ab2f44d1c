"""The straight line: from a workload and a target to a bundle that is proven to fit."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgebuild.vocabulary.errors import (
    InputError,
    InvalidDestination,
    NothingBuilt,
    did_you_mean,
)
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.target import Budget, Preference, Target
from edgebuild.vocabulary.workload import Workload

if TYPE_CHECKING:
    from edgebuild.bundles.manifest import Bundle, Manifest
    from edgebuild.vocabulary.calibration import Calibration
    from edgebuild.vocabulary.contracts import Device, Progress
    from edgebuild.vocabulary.trial import Trial


def build(
    workload: Workload | str,
    target: Target | str,
    budget: Budget | None = None,
    *,
    out: str | Path,
    formats: Sequence[str] = (),
    precisions: Sequence[Precision] = (),
    methods: Sequence[str] = (),
    prefer: Preference = Preference.SCORE,
    minutes: float | None = None,
    seed: int = 0,
    device: str = "",
    emulate: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Searches, measures, judges and packs; the bundle is written even if it breaches a line.

    Args:
        workload: a Workload, or a reference to one such as "file.py:function".
        target: a Target, or the name or path of a profile.
        budget: wishes that replace the target's own, line by line.
        out: the folder to write; an older bundle there is replaced, but kept beside it where that
            kept its budget and the new one does not.
        formats: the formats to try, by their exporters' names; all unless given.
        precisions: the precisions to try; all unless given, but those without a kernel only where
            a limit on storage or download is too small for floats.
        methods: the methods that may change the network, by name; all unless given.
        prefer: what is chosen among those that breach no budget line.
        minutes: how long the build may look for better ones, from its start on; one precision for
            all layers is always tried, and what is chosen is proven after it. Until the budget is
            kept unless given.
        seed: what training draws its batches from.
        device: the URL of the target itself, where there is one to measure candidates on.
        emulate: whether the bundle's bits are proven on emulated ARM64 processors as well.
        progress: where to say how far it is; silent unless given.

    Raises:
        InputError: a workload, target or destination that cannot be used.
        NothingBuilt: no candidate became an artifact; the message holds each one's reason.
        DeviceError: the device cannot be reached or lacks a runtime, or what emulates cannot be
            fetched: found before any work. Or the device was lost on the way.
    """
    # Imported here: `edgebuild --help` must not wait for torch.
    from edgebuild import arm64, catalog
    from edgebuild.bundles.arm_proof import arm_proofs
    from edgebuild.bundles.pack import check_destination, pack
    from edgebuild.bundles.succession import place_aside
    from edgebuild.cache import Cache, default_root
    from edgebuild.inputs.target_file import load_target
    from edgebuild.inputs.workload_check import check_workload
    from edgebuild.inputs.workload_file import load_workload
    from edgebuild.report.html import render_html
    from edgebuild.report.markdown import render
    from edgebuild.search.case import open_case
    from edgebuild.search.estimate import doubts
    from edgebuild.search.judge import choose
    from edgebuild.search.loop import Wishes, search
    from edgebuild.search.make import runtime_facts
    from edgebuild.search.prove import prove
    from edgebuild.search.record import record
    from edgebuild.search.uniform import worth_trying
    from edgebuild.vocabulary.silence import Silence

    out, progress, begun = Path(out), progress or Silence(), time.monotonic()
    seconds = None if minutes is None else minutes * 60
    with _clear_disk_errors():
        target = load_target(target) if isinstance(target, str) else target
        budget = target.budget.overridden_by(budget or Budget())
        target.refuse_impossible(budget)
        check_destination(out)
        formats = formats or catalog.names("exporters")
        methods = _methods(methods)
        _refuse_useless_formats(formats, target)
        with _place(device, target, formats, progress) as place:
            if emulate:
                arm64.parts(progress)
            with progress.step("Loading the workload"):
                workload = load_workload(workload) if isinstance(workload, str) else workload
                check_workload(workload)
            case = open_case(workload, target, budget, Cache(default_root()), progress)
            case = replace(case, has_target=bool(device))
            with progress.step("Scoring the network"):
                # First of all: a score that fails must not fail after minutes of work.
                _ = case.float_score
            wanted = tuple(precisions) or worth_trying(budget, case.program)
            wishes = Wishes(tuple(formats), wanted, methods, seconds, seed)
            found = search(case, wishes, place, progress, begun)
            best = choose(found.trials, prefer)
            if best is None:
                raise NothingBuilt(_reasons(found.trials))
            chosen = next(one for one in found.made if one.recipe == best.recipe)
            facts = runtime_facts(target, chosen.artifact.runtime)
            for doubt in doubts(target, facts, chosen.census.runs):
                progress.say(doubt)
            proof = prove(case, chosen, place, progress)
        manifest = record(case, proof, found, time.monotonic() - begun, seed)
        golden = {"input": proof.golden_inputs, "output": proof.golden_outputs}

        def packed(manifest: Manifest, aside: Path | None = None) -> Bundle:
            model, report, page = chosen.artifact.path, render(manifest), render_html(manifest)
            return pack(out, manifest, model, golden, report, page, aside)

        bundle = packed(manifest, place_aside(out, manifest, progress))
        # The bundle is what is proven there, and its reports tell of it: it is packed again.
        return packed(replace(manifest, arm=arm_proofs(bundle, progress))) if emulate else bundle


def calibrate(
    target: str, out: str | Path, *, device: str = "", progress: Progress | None = None
) -> Calibration:
    """Probes a device for a minute, and writes the target's profile with what it has timed.

    Args:
        target: the name or path of a profile that the device is an example of.
        out: the .toml to write; the probe's file is written beside it.
        device: the device's URL; this machine unless given.
        progress: where to say how far it is; silent unless given.

    Raises:
        InputError: a target that the device cannot be, or a destination that is no .toml.
        DeviceError: the device cannot be reached, lacks a runtime, or was lost on the way.
    """
    from edgebuild import catalog
    from edgebuild.bundles.destination import check_writable
    from edgebuild.cache import Cache, default_root
    from edgebuild.inputs.calibration_file import write_calibrated
    from edgebuild.inputs.target_file import load_target, profile_text
    from edgebuild.search.probe import probe
    from edgebuild.vocabulary.silence import Silence

    out, progress = Path(out), progress or Silence()
    if out.suffix != ".toml" or not out.parent.is_dir():
        raise InvalidDestination(
            f"{out} cannot be a profile: give a .toml in a folder that is there"
        )
    check_writable(out)
    profile = load_target(target)
    if not device and not profile.is_this_machine:
        raise InputError(
            f"{profile.name} is another machine than this one: give it with --device, as "
            "ssh://user@host"
        )
    with (
        _clear_disk_errors(),
        _place(device, profile, catalog.names("exporters"), progress) as place,
    ):
        found = probe(profile, place, Cache(default_root()), progress)
        write_calibrated(profile_text(target), out, found)
    return found


@contextmanager
def _place(
    url: str, target: Target, formats: Sequence[str], progress: Progress
) -> Iterator[Device]:
    """What candidates are measured on: the target itself, or this machine in its stead.

    Raises:
        InputError: a device that cannot be the target.
        DeviceError: it cannot be reached, or lacks a runtime.
    """
    from edgebuild import catalog
    from edgebuild.bundles.setup import refuse_unfit
    from edgebuild.bundles.stand_in import is_elsewhere

    runtimes = {catalog.exporter(name).runtime for name in formats}
    device = catalog.device(url or "local", progress)
    if url and is_elsewhere(device, target):
        raise InputError(
            f"{device.name} is not {target.name}, and its figures would pass for the target's: "
            "give the device itself, as ssh://user@host, or build without --device"
        )
    with device as place:
        if not place.is_here:
            refuse_unfit(place, target, [r.name for r in target.runtimes if r.name in runtimes])
        yield place


def _refuse_useless_formats(formats: Sequence[str], target: Target) -> None:
    from edgebuild import catalog

    runtimes = [runtime.name for runtime in target.runtimes]
    if not any(catalog.exporter(name).runtime in runtimes for name in formats):
        raise InputError(
            f"{target.name} runs {' and '.join(runtimes)}, which takes none of the formats "
            f"{', '.join(formats)}"
        )


def _methods(asked: Sequence[str]) -> tuple[str, ...]:
    from edgebuild import catalog

    known = catalog.names("methods")
    for name in asked:
        if name not in known:
            raise InputError(f"no method is called {name!r}.{did_you_mean(name, known)}")
    return tuple(asked or known)


def _reasons(failed: Sequence[Trial]) -> str:
    if not failed:
        return "nothing to build: no format and precision that was asked for runs on the target"
    lines = [f"{trial.recipe.format} {trial.recipe.name}: {trial.failure}" for trial in failed]
    return "\n  ".join(["nothing could be built:", *lines])


@contextmanager
def _clear_disk_errors() -> Iterator[None]:
    """A full or read-only disk is no bug of ours; whatever was being written is gone again."""
    from edgebuild.cache import default_root

    try:
        yield
    except OSError as error:
        place = str(error.filename or "the cache or the output folder")
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
        if not is_full and not place.startswith(str(default_root())):
            raise
        raise InvalidDestination(
            f"{place} cannot be written: {error.strerror}. Nothing was left half-written; "
            "free some space, or set EDGEBUILD_CACHE and -o to another disk"
        ) from error
