"""What a search has tried, made and learned so far, and what is to be expected of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from edgebuild.catalog import QUANTIZE
from edgebuild.search.frontier import speed
from edgebuild.search.learn import FLOOR, Beliefs, Observation, expected
from edgebuild.search.make import Made
from edgebuild.search.menu import Menu, Plan, settle
from edgebuild.search.plan import appraise
from edgebuild.search.proposal import Attempt, Proposal
from edgebuild.search.survey import Survey
from edgebuild.vocabulary.offer import Offer
from edgebuild.vocabulary.trial import Trial


@dataclass
class Found:
    """What a search has tried, made and learned so far.

    `ran_out_of_time` says that it ended because its time was up, not because it was done.
    """

    attempts: list[Attempt] = field(default_factory=list)
    made: list[Made] = field(default_factory=list)
    beliefs: Beliefs = field(default_factory=Beliefs)
    survey: Survey | None = None
    menus: dict[str, Menu] = field(default_factory=dict)
    appraisals: dict[str, Plan | None] = field(default_factory=dict)
    ran_out_of_time: bool = False

    @property
    def trials(self) -> list[Trial]:
        return [attempt.trial for attempt in self.attempts]

    def expected(self) -> Iterator[tuple[Attempt, Observation, float, float]]:
        """Of every planned candidate the latency and the loss that all others let expect."""
        pairs = list(self.observations())
        figures = expected([seen for _, seen in pairs])
        for (attempt, seen), (latency, loss) in zip(pairs, figures, strict=True):
            yield attempt, seen, latency, loss

    def observations(self) -> Iterator[tuple[Attempt, Observation]]:
        """What was to be expected and what was measured, of every candidate that was made."""
        for attempt in self.attempts:
            figures, appraisal = attempt.trial.figures, self._appraisal(attempt.proposal)
            if "divergence" in figures and appraisal is not None:
                yield (
                    attempt,
                    Observation(
                        attempt.proposal.format,
                        appraisal.latency,
                        speed(attempt.trial),
                        appraisal.losses,
                        figures["divergence"].value,
                        attempt.proposal.steps,
                        any(chosen.is_integer for chosen in appraisal.precisions.values()),
                    ),
                )

    def by_rounding(self, attempt: Attempt) -> float:
        """Which share of its divergence quantization is believed to cause; all where unknown."""
        appraisal, figures = self._appraisal(attempt.proposal), attempt.trial.figures
        if appraisal is None or "divergence" not in figures:
            return 1.0
        caused = self.beliefs.weight(QUANTIZE) * appraisal.losses.get(QUANTIZE, 0.0)
        return caused / max(figures["divergence"].value, FLOOR)

    def _appraisal(self, proposal: Proposal) -> Plan | None:
        """What the menus say of a proposal; None before there are any, and of other precisions."""
        menu, key = self.menus.get(proposal.format), repr(_what(proposal))
        if menu is None or not menu.layers or self.survey is None:
            return None
        if key not in self.appraisals:
            offers = self._offers(menu, proposal)
            try:
                self.appraisals[key] = appraise(menu, offers, proposal.precisions)
            except LookupError:
                self.appraisals[key] = None
        return self.appraisals[key]

    def _offers(self, menu: Menu, proposal: Proposal) -> list[Offer]:
        """What a proposal takes of what was offered, students among it."""
        students = self.survey.students if self.survey else ()
        every = [*(weighed.offer for weighed in menu.offers), *students]
        chosen = set(proposal.reshaped)
        return [offer for offer in every if (offer.part, offer.choice) in chosen]

    def network(self, proposal: Proposal) -> tuple[object, ...]:
        """What tells networks apart: their layers, and what is done beside choosing these.

        Pruning and a student may come to the same widths, and so to the same channels.
        """
        menu = self.menus.get(proposal.format)
        offers = self._offers(menu, proposal) if menu else []
        layers = settle(menu, offers).layers if menu and offers else {}
        taken = {(offer.part, offer.choice) for offer in offers}
        others = [place for place in proposal.reshaped if place not in taken]
        return sorted(layers.items(), key=str), sorted(others)


def _what(proposal: Proposal) -> tuple[object, ...]:
    """What tells proposals apart, whatever they are called and expected to come to."""
    return proposal.format, sorted(proposal.reshaped), sorted(proposal.precisions.items())
