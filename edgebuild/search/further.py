"""Takes what is promising further: longer training, finer rounding, zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from edgebuild.search.frontier import speed, volume
from edgebuild.search.proposal import Attempt, Proposal, frontier_of
from edgebuild.search.reach import WITHIN_REACH
from edgebuild.search.training import Training
from edgebuild.vocabulary.offer import Choice, Offer
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.verdict import Status

# How much longer a shape is trained when it has shown promise, and the share of what it has lost
# that is thought to be lost after that.
LONGER, GAINED = 4, 0.25
# The score that a network must have lost, and the share of what it diverges that must be believed
# to be quantization's, before something is done about its rounding.
WORTH_ROUNDING, BY_ROUNDING = 0.003, 0.25
# Finer rounding gets back most of what rounding has cost, and so is tried for what has lost more
# than training could get back: if the loss is mostly rounding's, and no more than this.
MOSTLY, ROUNDED_REACH = 0.5, 0.3
# A network that is so near to the whole one (KL of the outputs, in nats) is not trained further. A
# score that has lost nothing is not enough: on other samples it may have.
NEGLIGIBLE = 0.005
# The precisions that whole networks are fast in.
ALIKE = (Precision.INT8_STATIC, Precision.INT8_DYNAMIC)
# How many shapes of the frontier are taken further in one round.
PROMISING = 3


def _wholly(attempt: Attempt) -> float:
    return 1.0


def further(
    attempts: Sequence[Attempt],
    training: Training,
    zeros: Sequence[Offer] = (),
    by_rounding: Callable[[Attempt], float] = _wholly,
    precisions: Sequence[Precision] = (),
) -> Iterator[Proposal]:
    """The most promising networks after more steps, more finely rounded, or with zeros.

    And the fastest with all layers alike, in each of the precisions that compute in integers.

    `by_rounding` tells which share of an attempt's divergence quantization is believed to cause.
    """
    spent, count = 0.0, 0
    promising = [one for one in _promising(attempts) if _is_within_reach(one, by_rounding(one))]
    fastest = promising[:1]
    yield from _alike([one.proposal for one in fastest], precisions)
    for attempt in _first_to_gain(promising, attempts):
        longer = list(_longer(attempt, training, spent))
        spent += sum(training.seconds(one.steps, one.work) for one in longer)
        proposals = [*longer, *(_alike(longer, precisions) if attempt in fastest else ())]
        if by_rounding(attempt) >= BY_ROUNDING:
            proposals += _finer(attempt, attempts, training)
        proposals += _sparser(attempt, zeros)
        yield from proposals
        count += bool(proposals)
        if count == PROMISING:
            return


def _is_within_reach(attempt: Attempt, by_rounding: float) -> bool:
    reach = ROUNDED_REACH if by_rounding >= MOSTLY else WITHIN_REACH
    return attempt.drop <= reach


def _first_to_gain(promising: Sequence[Attempt], attempts: Sequence[Attempt]) -> list[Attempt]:
    """First what comes nearest to the budget; where some keep it, what has the most to gain.

    More steps take most of what is lost, and what the frontier would gain then depends on how fast
    the others are. Of equals the fastest comes first.
    """
    trials = [attempt.trial for attempt in attempts]
    if all(one.verdict.overrun > 0 for one in trials if not one.failure):
        return sorted(promising, key=lambda one: one.trial.verdict.overrun)
    return sorted(promising, key=lambda one: -volume(trials, one.trial, GAINED))


def _promising(attempts: Sequence[Attempt]) -> list[Attempt]:
    """What nothing surpasses that was trained no longer, the fastest first.

    What was trained for longer does not speak against a shape. Each shape stands for itself once:
    as it was trained the longest, in the format that is fastest then.
    """
    longest: dict[object, int] = {}
    for attempt in attempts:
        cut = attempt.proposal.cut
        longest[cut] = max(longest.get(cut, 0), attempt.proposal.steps)
    found: dict[object, Attempt] = {}
    for steps in set(longest.values()):
        rivals = [one for one in attempts if one.proposal.steps <= steps]
        for attempt in frontier_of(rivals):
            cut = attempt.proposal.cut
            if attempt.proposal.steps == steps == longest[cut]:
                # Of the whole network, each way to round it.
                found.setdefault(cut or id(attempt), attempt)
    return sorted(found.values(), key=lambda attempt: speed(attempt.trial))


def _longer(attempt: Attempt, training: Training, spent: float) -> Iterator[Proposal]:
    """The same network after more steps, where it answers otherwise than the whole one.

    `spent` are the seconds that others take.
    """
    steps, work = attempt.proposal.steps, attempt.proposal.work
    most = min(steps * LONGER, training.most_steps(work, spent))
    has_lost = attempt.drop > 0 or attempt.divergence > NEGLIGIBLE
    if steps < most and has_lost and attempt.drop <= WITHIN_REACH:
        yield attempt.proposal.anew(training.choice(most))


def _alike(proposals: Sequence[Proposal], precisions: Sequence[Precision]) -> Iterator[Proposal]:
    """The same networks, with one precision for all layers.

    What tiny layers take the runtimes' clocks hardly tell apart, nor what passing from one
    precision to another costs: such a network tells it as a whole.
    """
    for proposal in proposals:
        if any(chosen.is_integer for chosen in proposal.precisions.values()):
            for precision in precisions:
                if precision in ALIKE:
                    alike = dict.fromkeys(proposal.precisions, precision)
                    yield replace(proposal, precisions=alike).named()


def _finer(attempt: Attempt, attempts: Sequence[Attempt], training: Training) -> Iterator[Proposal]:
    """Better rounding, and training on the integer grid, where quantization has cost score."""
    proposal = attempt.proposal
    integer = {precision for precision in proposal.precisions.values() if precision.is_integer}
    best = max(one.trial.score for one in attempts)
    floats = [one.trial.score for one in attempts if _same_float(one.proposal, proposal)]
    if not integer or max(floats, default=best) - attempt.trial.score < WORTH_ROUNDING:
        return
    grid = "int4" if Precision.INT4_WEIGHTS in integer else "int8"
    tried = {c for one in attempts for c in _roundings(one.proposal, proposal)}
    for rounding in training.roundings:
        if rounding not in tried and (" int4" in rounding.option) == (grid == "int4"):
            yield proposal.anew(rounding)
            break
    steps = proposal.steps or training.first_steps(proposal.work)
    if steps and not any("qat" in option for option in proposal.trainings):
        choice = training.choice(steps, grid)
        yield proposal.anew(choice)


def _sparser(attempt: Attempt, zeros: Sequence[Offer]) -> Iterator[Proposal]:
    """The same network with zeros in all layers, where an archive of it would be too large."""
    lines = {line.name: line for line in attempt.trial.verdict.lines}
    line = lines.get("download")
    has_zeros = {choice.method for _, choice in attempt.proposal.reshaped} & {
        offer.choice.method for offer in zeros
    }
    if line is None or line.status is not Status.BREACHED or has_zeros:
        return
    for option in dict.fromkeys(offer.choice.option for offer in zeros):
        chosen = [(one.part, one.choice) for one in zeros if one.choice.option == option]
        proposal = attempt.proposal
        yield replace(proposal, reshaped=(*proposal.reshaped, *chosen)).named()


def _roundings(other: Proposal, proposal: Proposal) -> Iterator[Choice]:
    """How another proposal rounds, if that is all that it does otherwise."""
    own, others = (set(one.without("round")) for one in (proposal, other))
    if own == others and other.format == proposal.format:
        yield from (choice for _, choice in other.reshaped if choice.method == "round")


def _same_float(other: Proposal, proposal: Proposal) -> bool:
    """Whether it is the same network without integers."""
    return other.reshaped == proposal.reshaped and not any(
        precision.is_integer for precision in other.precisions.values()
    )
