"""What is compared: the joint search, each family alone, chance, and each runtime's own INT8."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pieces import Row
from runtime_defaults import quantized_by_default

from edgebuild.cache import Cache
from edgebuild.search.case import Case
from edgebuild.search.found import Found
from edgebuild.search.frontier import frontier, halvings
from edgebuild.search.judge import choose
from edgebuild.search.loop import Rounds, Wishes, search, try_uniform
from edgebuild.search.make import runtime_facts
from edgebuild.search.measure import Effort, clock, outputs_of
from edgebuild.search.menu import Menu
from edgebuild.search.proposal import Proposal
from edgebuild.search.propose import recovered, work_of
from edgebuild.search.training import Training
from edgebuild.vocabulary.artifact import Artifact
from edgebuild.vocabulary.contracts import Device, Progress
from edgebuild.vocabulary.offer import Offer, Part
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.target import Preference

FORMATS = ("onnx", "tflite")
FLOAT = (Precision.FP32,)
INTEGERS = (
    *FLOAT,
    Precision.INT8_STATIC,
    Precision.INT8_DYNAMIC,
    Precision.INT4_WEIGHTS,
)
EVERYTHING = ("prune", "student", "factorize", "distill", "round", "quantize")
# What a search may use: methods, and precisions. Each of the four families alone; pruning with
# distillation to recover, the strongest pair; and all together.
SEARCHES: Mapping[str, tuple[tuple[str, ...], tuple[Precision, ...]]] = {
    "quantize": (("quantize", "round"), INTEGERS),
    "prune": (("prune",), FLOAT),
    "factorize": (("factorize",), FLOAT),
    "distill": (("student", "distill"), FLOAT),
    "prune+distill": (("prune", "distill"), FLOAT),
    "joint": (EVERYTHING, INTEGERS),
}
SYSTEMS = ("float", "runtime-int8", *SEARCHES, "random")
# INT8 of the whole network spares at most a tenth of its layers, and changes how they are rounded.
WHOLE, ROUNDING = 0.9, {"round", "distill"}
# Latencies are taken in turns with the float network's: what the machine does besides hits both.
TURNS, TURN = 5, Effort(seconds=0.3, count=64)


def is_seeded(system: str) -> bool:
    """Whether it is run with every seed: chance plays a part where it trains, or chooses.

    The pair is no goal, only for orientation, and runs once.
    """
    return system in ("distill", "joint", "random")


@contextmanager
def apart(cache: Cache) -> Iterator[Cache]:
    """A copy of the cache that is forgotten: no search shall find what another one has made."""
    before = os.environ.get("EDGEBUILD_CACHE")
    with tempfile.TemporaryDirectory(dir=cache.root.parent, prefix="piece-") as name:
        shutil.copytree(cache.root, name, copy_function=os.link, dirs_exist_ok=True)
        # Exporters ask for the user's cache, wherever the case has its own.
        os.environ["EDGEBUILD_CACHE"] = name
        try:
            yield Cache(Path(name))
        finally:
            del os.environ["EDGEBUILD_CACHE"]
            if before is not None:
                os.environ["EDGEBUILD_CACHE"] = before


def rows_of(
    case: Case,
    system: str,
    seed: int,
    minutes: float,
    tried: int,
    device: Device,
    progress: Progress,
) -> list[Row]:
    """The rows of one system: one for each runtime's own, one for what a search comes to.

    `tried` is how many candidates chance may measure.
    """
    begun = time.monotonic()
    whole = _whole(case, device, progress)
    bench = Bench(case, whole, device)
    if system == "float":
        return [bench.row(system, 0, one, begun) for one in whole.values()]
    if system == "runtime-int8":
        with tempfile.TemporaryDirectory() as folder:
            return [
                bench.row(
                    *(system, 0),
                    quantized_by_default(one, case.calibration, Path(folder)),
                    begun,
                )
                for one in whole.values()
            ]
    found = (
        _at_random(case, seed, minutes, tried, device, progress)
        if system == "random"
        else search(case, _wishes(system, seed, minutes), device, progress)
    )
    return [bench.found_row(system, seed, found, begun)]


def survey_once(case: Case, device: Device, progress: Progress) -> None:
    """Fills the cache with what all searches ask first, and with what they are compared with.

    Uniform candidates, offers and costs; the float network's outputs for the test split.
    """
    for system in SEARCHES:
        wishes, found = _wishes(system, 0, 0.0), Found()
        try_uniform(case, wishes, found, device, progress)
        Rounds(case, wishes, found, device, progress).prepare()
    case.reference(case.test)
    for artifact in _whole(case, device, progress).values():
        outputs_of(case, artifact, case.test, device)


def _wishes(system: str, seed: int, minutes: float) -> Wishes:
    methods, precisions = SEARCHES[system]
    return Wishes(FORMATS, precisions, methods, minutes * 60, seed)


def _whole(case: Case, device: Device, progress: Progress) -> dict[str, Artifact]:
    """The float network in each format that takes it."""
    found = Found()
    try_uniform(case, Wishes(FORMATS, FLOAT, ()), found, device, progress)
    return {one.recipe.format: one.artifact for one in found.made}


@dataclass(frozen=True)
class Bench:
    """Turns artifacts into rows: scores of the test split, latencies beside the float network's."""

    case: Case
    whole: Mapping[str, Artifact]
    device: Device

    def row(self, system: str, seed: int, artifact: Artifact, begun: float) -> Row:
        return self._row(system, seed, artifact, self._ratios([artifact])[0], begun)

    def found_row(self, system: str, seed: int, found: Found, begun: float) -> Row:
        """What the search would deliver: the fastest that keeps the score, within one point."""
        best = choose(found.trials, Preference.LATENCY)
        assert best is not None, "the float network is among them"
        artifacts = {one.recipe.digest: one.artifact for one in found.made}
        kept = [artifacts[trial.recipe.digest] for trial in (best, *frontier(found.trials))]
        ratios = self._ratios(kept)
        return {
            **self._row(system, seed, kept[0], ratios[0], begun),
            "recipe": best.recipe.name,
            "layers": best.recipe.summary,
            "hypervolume": self._hypervolume(kept[1:], ratios[1:]),
            "evaluations": len(found.made),
            "whole_int8": list(self._whole_int8(found, artifacts)),
            "planned": [
                {
                    "planned_latency": latency,
                    "measured_latency": seen.measured_latency,
                    "planned_loss": loss,
                    "measured_loss": seen.measured_loss,
                    "score": attempt.trial.score,
                    "recipe": attempt.proposal.name,
                    "format": attempt.proposal.format,
                }
                for attempt, seen, latency, loss in found.expected()
            ],
        }

    def _whole_int8(self, found: Found, artifacts: Mapping[str, Artifact]) -> Iterator[Row]:
        """What INT8 of the unchanged network comes to, by how it is rounded."""
        for trial in found.trials:
            precisions = list(trial.recipe.precisions.values())
            is_whole = precisions.count(Precision.INT8_STATIC) >= WHOLE * max(len(precisions), 1)
            methods = {choice.method for _, choice in trial.recipe.reshaped}
            if is_whole and methods <= ROUNDING and not trial.failure:
                yield {
                    "recipe": trial.recipe.name,
                    "layers": trial.recipe.summary,
                    "format": trial.recipe.format,
                    "score": self._score(artifacts[trial.recipe.digest]),
                }

    @property
    def _float_score(self) -> float:
        return self.case.own_score(self.case.test)

    def _score(self, artifact: Artifact) -> float:
        outputs = outputs_of(self.case, artifact, self.case.test, self.device)
        return self.case.score(outputs, self.case.test)

    def _hypervolume(self, kept: list[Artifact], ratios: list[float]) -> float:
        """Of the frontier on validation data, by its scores on test data."""
        losses = [max(self._float_score - self._score(artifact), 0.0) for artifact in kept]
        return halvings([(loss, 1 / ratio) for loss, ratio in zip(losses, ratios, strict=True)])

    def _ratios(self, artifacts: list[Artifact]) -> list[float]:
        """The float network's median latency over each artifact's, the median of several turns."""
        taken: list[list[float]] = [[] for _ in artifacts]
        for _ in range(TURNS):
            whole = {name: self._median(one) for name, one in self.whole.items()}
            for artifact, ratios in zip(artifacts, taken, strict=True):
                ratios.append(whole[artifact.format] / self._median(artifact))
        return [statistics.median(ratios) for ratios in taken]

    def _median(self, artifact: Artifact) -> float:
        threads = runtime_facts(self.case.target, artifact.runtime).threads
        taken = clock(artifact, self.case.calibration, threads, self.device, TURN)
        return statistics.median(taken.latencies)

    def _row(self, system: str, seed: int, artifact: Artifact, ratio: float, begun: float) -> Row:
        score, float_score = self._score(artifact), self._float_score
        return {
            "system": system,
            "seed": seed,
            "runtime": artifact.runtime,
            "score": score,
            "score_lost": (float_score - score) * 100,
            "latency_ratio": ratio,
            "bytes": artifact.size,
            "hypervolume": None,
            "evaluations": 1,
            "seconds": time.monotonic() - begun,
        }


def _at_random(
    case: Case, seed: int, minutes: float, tried: int, device: Device, progress: Progress
) -> Found:
    """As many candidates as the joint search has measured, chosen by chance."""
    wishes = _wishes("joint", seed, minutes)
    found = Found()
    try_uniform(case, wishes, found, device, progress)
    rounds = Rounds(case, wishes, found, device, progress)
    rounds.prepare()
    chance = random.Random(seed)
    training = rounds.training(minutes * 60)
    while len(found.made) < tried:
        rounds.attempt(list(_random_proposals(found.menus, training, chance)), float("inf"))
    return found


def _random_proposals(
    menus: Mapping[str, Menu], training: Training, chance: random.Random
) -> Iterator[Proposal]:
    """One random network in every format, each with random precisions."""
    menu = next(iter(menus.values()))
    taken = list(_random_offers(menu, chance))
    shape = recovered(taken, training, work_of(menu, taken))
    for name, menu in menus.items():
        precisions = {
            path: chance.choice(sorted(allowed)) for path, allowed in menu.precisions.items()
        }
        yield Proposal("", name, shape, precisions).named()


def _random_offers(menu: Menu, chance: random.Random) -> Iterator[Offer]:
    parts: dict[Part, list[Offer | None]] = {}
    for weighed in menu.offers:
        parts.setdefault(weighed.offer.part, [None]).append(weighed.offer)
    for options in parts.values():
        offer = chance.choice(options)
        if offer is not None:
            yield offer
