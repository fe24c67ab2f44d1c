"""Tells of every layer of a recipe what was done to it, what it runs on and how long it takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgebuild.report import words
from edgebuild.vocabulary.artifact import Arithmetic, Census, KernelRun
from edgebuild.vocabulary.offer import Part, PartKind
from edgebuild.vocabulary.program import Site
from edgebuild.vocabulary.recipe import Recipe


@dataclass(frozen=True)
class Row:
    """One layer, layers that share a kernel, or a kernel without weights.

    `times` are seconds by arithmetic; `share` is the part of a whole run; `loss` is what the
    planner expects to lose here, nats of KL, None where it says nothing.
    """

    name: str
    kinds: str
    precisions: str
    kernels: str
    times: Mapping[Arithmetic, float]
    share: float
    done: tuple[str, ...]
    loss: float | None

    @property
    def seconds(self) -> float:
        return sum(self.times.values())


def layers(recipe: Recipe, census: Census, losses: Mapping[str, float]) -> list[Row]:
    """The layers in the order in which they run, then those that no kernel is known of.

    `losses` are nats of KL by the layers' paths.
    """
    total = sum(run.seconds for run in census.runs)
    known = {site.path: site for site in recipe.precisions}
    groups: dict[tuple[str, ...], list[KernelRun]] = {}
    for run in census.runs:
        groups.setdefault(run.sites or (run.kernel,), []).append(run)
    seen = {path for run in census.runs for path in run.sites}
    for path in known:
        if path not in seen:
            groups[path,] = []
    return [_row(recipe, known, runs, key, total, losses) for key, runs in groups.items()]


def _row(
    recipe: Recipe,
    known: Mapping[str, Site],
    runs: Sequence[KernelRun],
    key: tuple[str, ...],
    total: float,
    losses: Mapping[str, float],
) -> Row:
    sites = [known[path] for path in key if path in known]
    times: dict[Arithmetic, float] = {}
    for run in runs:
        times[run.arithmetic] = times.get(run.arithmetic, 0.0) + run.seconds
    expected = [losses[site.path] for site in sites if site.path in losses]
    return Row(
        name=", ".join(key),
        kinds=_joined(site.kind for site in sites),
        precisions=_joined(recipe.precisions[site] for site in sites),
        kernels=", ".join(words.counted(run.kernel for run in runs if run.sites)),
        times={kind: times[kind] for kind in Arithmetic if kind in times},
        share=sum(times.values()) / total if total else 0.0,
        done=tuple(line for site in sites for line in _done(recipe, site)),
        # Losses are taken to add up, as the planner takes them.
        loss=sum(expected) if expected else None,
    )


def _joined(texts: Iterable[str]) -> str:
    """Each once, in order."""
    return ", ".join(dict.fromkeys(texts))


def _done(recipe: Recipe, site: Site) -> Iterator[str]:
    """What methods changed there, and why its precision is another one than the recipe's."""
    for part, choice in recipe.reshaped:
        if _holds(part, site):
            yield f"{choice.method}: {choice.option}"
    yield from (reason for declined, reason in recipe.declined if declined == site)


def _holds(part: Part, site: Site) -> bool:
    """A layer that was replaced leaves others under its path, as a block does."""
    if part.kind is PartKind.NETWORK:
        return False
    return site.path == part.path or site.path.startswith(f"{part.path}.")
