"""Explains a choice: what each site got, and what the next better choice there would cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from edgebuild.bundles.manifest import SiteRecord
from edgebuild.search.learn import FLOOR
from edgebuild.search.menu import Menu, offers_of, settle
from edgebuild.search.proposal import Proposal
from edgebuild.vocabulary.offer import Offer
from edgebuild.vocabulary.precision import Precision


@dataclass(frozen=True)
class Option:
    """One thing that a site could get: what it is called, nats and seconds."""

    name: str
    loss: float
    seconds: float


def explain(
    menu: Menu, proposal: Proposal, tried: Sequence[Proposal] = ()
) -> tuple[SiteRecord, ...]:
    """One record for every site: what it got, and what one more millisecond would buy there.

    Losses and times are the planner's: nats of KL for that choice alone, seconds on the target.
    `tried` are all proposals: what became of a better choice that would cost nothing.
    """
    alike = [one for one in tried if one.format == proposal.format]
    return (*_layers(menu, proposal, alike), *_parts(menu, proposal, alike))


def _layers(menu: Menu, proposal: Proposal, tried: Sequence[Proposal]) -> Iterator[SiteRecord]:
    settled = settle(menu, offers_of(menu, proposal.reshaped))
    for path, shapes in settled.layers.items():
        options = {
            precision: Option(precision, loss, sum(menu.seconds(s, precision) for s in shapes))
            for precision, loss in menu.precisions[path].items()
        }
        asked = proposal.precisions.get(path, Precision.FP32)
        # What a format has no kernel for is not on the menu, though it was asked for.
        got = options[asked if asked in options else next(iter(options))]
        found = _record(path, got, list(options.values()))
        have = sum(one.precisions.get(path, Precision.FP32) == found.better for one in tried)
        yield _with_fate(found, have)


def _parts(menu: Menu, proposal: Proposal, tried: Sequence[Proposal]) -> Iterator[SiteRecord]:
    """What was changed: priced against leaving that part as it was, everything else alike."""
    offers = offers_of(menu, proposal.reshaped)
    changed = _seconds(menu, offers, proposal)
    losses = {(w.offer.part, w.offer.choice): w.loss for w in menu.offers}
    for offer in offers:
        others = [other for other in offers if other is not offer]
        loss = losses.get((offer.part, offer.choice), 0.0)
        name = f"{offer.choice.method}: {offer.choice.option}"
        got = Option(name, loss, changed)
        whole = Option("as it was", 0.0, _seconds(menu, others, proposal))
        found = _record(offer.part.path or "the network", got, [got, whole])
        have = sum(offer.part not in {part for part, _ in one.reshaped} for one in tried)
        yield replace(_with_fate(found, have), is_shared=True)


def _with_fate(found: SiteRecord, have: int) -> SiteRecord:
    """What became of a better choice that seems to cost nothing: one asks why it was not taken."""
    if not found.better or found.costs > 0:
        return found
    if not have:
        return replace(found, untaken="no candidate that was tried has it")
    named = "candidate that has it was" if have == 1 else "candidates that have it were"
    return replace(found, untaken=f"{have} {named} measured, and not chosen")


def _seconds(menu: Menu, offers: Sequence[Offer], proposal: Proposal) -> float:
    settled = settle(menu, offers)
    return sum(
        menu.seconds(shape, proposal.precisions.get(path, Precision.FP32))
        for path, shapes in settled.layers.items()
        for shape in shapes
    )


def _record(path: str, got: Option, options: list[Option]) -> SiteRecord:
    """The best buy is the option that saves the most loss for its time."""
    # What saves no more than noise is nothing that one could buy.
    better = [option for option in options if option.loss < got.loss - FLOOR]
    best = max(better, key=lambda option: _price(got, option), default=None)
    return SiteRecord(
        path=path,
        choice=got.name,
        loss=got.loss,
        seconds=got.seconds,
        better=best.name if best else "",
        costs=best.seconds - got.seconds if best else 0.0,
        saves=got.loss - best.loss if best else 0.0,
    )


def _price(got: Option, option: Option) -> float:
    """Nats saved per second; an option that is no slower is free."""
    extra = option.seconds - got.seconds
    return (got.loss - option.loss) / max(extra, 1e-9)
