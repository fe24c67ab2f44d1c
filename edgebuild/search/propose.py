"""Proposes what to try next: the solver's plans, students, longer training, finer rounding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from edgebuild.search.frontier import frontier, speed, volume
from edgebuild.search.integer_program import GAP
from edgebuild.search.learn import Beliefs
from edgebuild.search.menu import Limits, Menu, Plan, offers_of, settle
from edgebuild.search.plan import fastest, nearest, plan, whole
from edgebuild.search.proposal import Attempt, Proposal, Shape
from edgebuild.search.reach import WITHIN_REACH, bearable
from edgebuild.search.training import Training
from edgebuild.vocabulary.offer import NETWORK, Choice, Offer
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.units import Seconds
from edgebuild.vocabulary.verdict import Status

# Where the first plans lie between the fastest network and the unchanged one in the fastest
# precision that loses little, in the logarithm: the very first in the middle, and then on both
# sides of it. All lie beyond it where it lost so little score that slower ones could hardly gain
# any, and before it where it lost too much.
OPENING, AROUND, BEYOND, BEFORE = 0.45, (0.2, 0.7), (0.2, 0.0), (0.7,)
LITTLE, MUCH = 0.01, 0.04
# The place of the first student among all, from the largest to the smallest, beside such plans.
FITTING = {BEFORE: 0.25, AROUND: 0.5, BEYOND: 0.75}
# The first plans are at most so many times faster than that precision: of a network whose blocks
# can all be skipped, the fastest is nothing that could learn.
DEEPEST = 16.0
# How much faster than the fastest network on the frontier a bolder one is to be.
BOLDER = 1.5
# The precisions of a shape may take so much longer than the fastest ones, to lose less.
SLACK = 1.15
# Formats in which a network should take at most so many times as long as in the best one are tried.
CLOSE = 1.1
# A student whose latency is within this factor of what is wished is tried.
NEAR = 1.4
# How much longer a shape is trained when it has shown promise, and the share of what it has lost
# that is thought to be lost after that.
LONGER, GAINED = 4, 0.25
# The score that a network must have lost, and the share of what it diverges that must be believed
# to be quantization's, before something is done about its rounding.
WORTH_ROUNDING, BY_ROUNDING = 0.003, 0.25
# A network that is so near to the whole one (KL of the outputs, in nats) is not trained further. A
# score that has lost nothing is not enough: on other samples it may have.
NEGLIGIBLE = 0.005
# How many shapes of the frontier are taken further in one round.
PROMISING = 3


def _wholly(attempt: Attempt) -> float:
    return 1.0


def opening(
    attempts: Sequence[Attempt],
    menus: Mapping[str, Menu],
    limits: Limits,
    training: Training,
    beliefs: Beliefs,
) -> Iterator[Proposal]:
    """One plan in every format: it tells how fast each really is, before more is made in it."""
    yield from _between(attempts, menus, (OPENING,), limits, training, beliefs)


def first_shapes(
    attempts: Sequence[Attempt],
    menus: Mapping[str, Menu],
    students: Sequence[Offer],
    limits: Limits,
    training: Training,
    beliefs: Beliefs,
) -> Iterator[Proposal]:
    """A fast plan, one that should lose less or be even faster, and a middling student.

    Where the opening lost much there is one slower plan, and the student is a larger one; where it
    lost little, a smaller one.
    """
    opened = [one for one in attempts if one.proposal.reshaped and one.is_scored]
    lost = min((one.drop for one in opened), default=LITTLE)
    places = BEYOND if lost < LITTLE else AROUND if lost <= MUCH else BEFORE
    yield from _between(attempts, menus, places, limits, training, beliefs)
    if students and training.is_possible:
        # They come with the largest first.
        fitting = students[int(len(students) * FITTING[places])]
        yield from _realized(menus, [fitting], training, limits)


def _between(
    attempts: Sequence[Attempt],
    menus: Mapping[str, Menu],
    places: Iterable[float],
    limits: Limits,
    training: Training,
    beliefs: Beliefs,
) -> Iterator[Proposal]:
    menu = next(iter(menus.values()))
    low, high = _fastest(menu, attempts, training, limits), whole(menu).latency
    unchanged = [one for one in attempts if not one.proposal.reshaped and not one.trial.failure]
    # What is slower than a precision that loses little has nothing to offer.
    high = min([high, *(speed(one.trial) for one in unchanged if one.drop < LITTLE)])
    low = max(low, Seconds(high / DEEPEST))
    for place in places:
        between = math.exp(math.log(low) + place * (math.log(high) - math.log(low)))
        latency = max(min(between, limits.latency), low * (1 + GAP))
        yield from _planned(menus, attempts, replace(limits, latency=latency), training, beliefs)


def next_shapes(
    attempts: Sequence[Attempt],
    menus: Mapping[str, Menu],
    limits: Limits,
    training: Training,
    beliefs: Beliefs,
    students: Sequence[Offer] = (),
    zeros: Sequence[Offer] = (),
    by_rounding: Callable[[Attempt], float] = _wholly,
) -> Iterator[Proposal]:
    """What the frontier suggests: longer training, finer rounding, its gaps, something bolder.

    `by_rounding` tells which share of an attempt's divergence quantization is believed to cause.
    """
    best, spent = _on_frontier(attempts), 0.0
    promising = [one for one in _promising(attempts) if one.drop <= WITHIN_REACH]
    for attempt in _first_to_gain(promising, attempts)[:PROMISING]:
        for longer in _longer(attempt, training, spent):
            spent += training.seconds(longer.steps, longer.work)
            yield longer
        if by_rounding(attempt) >= BY_ROUNDING:
            yield from _finer(attempt, attempts, training)
        yield from _sparser(attempt, zeros)
    wishes = list(_wished(best))
    kinds = [
        lambda: _plans(menus, attempts, wishes, limits, training, beliefs),
        lambda: _another_student(menus, students, attempts, wishes, training, limits),
    ]
    for propose in reversed(kinds) if _students_lead(attempts) else kinds:
        yield from propose()


def _students_lead(attempts: Sequence[Attempt]) -> bool:
    """Whether the frontier owes more to students than to what was planned part by part."""
    students = [one for one in attempts if one.proposal.cut and _is_student(one)]
    planned = [one for one in attempts if one.proposal.cut and not _is_student(one)]
    others = [one for one in attempts if not one.proposal.cut]
    with_students, with_planned = (
        volume(one.trial for one in (*others, *kind)) for kind in (students, planned)
    )
    return with_students > with_planned


def _is_student(attempt: Attempt) -> bool:
    return any(part == NETWORK for part, _ in attempt.proposal.cut)


def _plans(
    menus: Mapping[str, Menu],
    attempts: Sequence[Attempt],
    wishes: Sequence[float],
    limits: Limits,
    training: Training,
    beliefs: Beliefs,
) -> Iterator[Proposal]:
    """A plan for every latency that is wished."""
    least = _fastest(next(iter(menus.values())), attempts, training, limits)
    for wished in wishes:
        latency = max(wished, least)
        yield from _planned(menus, attempts, replace(limits, latency=latency), training, beliefs)


def _first_to_gain(promising: Sequence[Attempt], attempts: Sequence[Attempt]) -> list[Attempt]:
    """First what comes nearest to the budget; where some keep it, what has the most to gain.

    More steps take most of what is lost, and what the frontier would gain then depends on how fast
    the others are. Of equals the fastest comes first.
    """
    trials = [attempt.trial for attempt in attempts]
    if all(one.verdict.overrun > 0 for one in trials if not one.failure):
        return sorted(promising, key=lambda one: one.trial.verdict.overrun)
    return sorted(promising, key=lambda one: -volume(trials, one.trial, GAINED))


def _fastest(
    menu: Menu, attempts: Sequence[Attempt], training: Training, limits: Limits
) -> Seconds:
    """The latency that no plan needs to go below."""
    if training.is_possible and not _are_out_of_reach(attempts):
        return fastest(menu).latency
    # Little or nothing will be taken from what a plan loses, so that most of what is fast is lost
    # from the start.
    seen = [(one.divergence, one.drop) for one in attempts if not one.trial.failure]
    within = fastest(menu, bearable(seen)).latency
    if within <= limits.latency:
        return within
    # A latency that is wished is tried, whatever it loses.
    return min(within, Seconds(max(fastest(menu).latency, limits.latency)))


def _are_out_of_reach(attempts: Sequence[Attempt]) -> bool:
    """Whether training has not saved a single one of the networks that were changed."""
    trained = [one for one in attempts if one.proposal.cut and one.proposal.steps]
    drops = [one.drop for one in trained if one.is_scored]
    return min(drops, default=0.0) > WITHIN_REACH


def _planned(
    menus: Mapping[str, Menu],
    attempts: Sequence[Attempt],
    limits: Limits,
    training: Training,
    beliefs: Beliefs,
) -> Iterator[Proposal]:
    """One plan for the first format's costs; the others get the same network."""
    first = next(iter(menus.values()))
    # Losses of other families than quantization count less where training takes from them: where
    # there is time for it, with about the work that is left, and where it has not come to nothing.
    work = min(limits.latency / whole(first).latency, 1.0)
    recovering = training.first_steps(work) > 0 and not _are_out_of_reach(attempts)
    found = plan(first, limits, beliefs.weight) if recovering else plan(first, limits)
    found = found or nearest(first, limits)
    offers = offers_of(first, found.reshaped)
    # What is trained gets back what fast precisions lose; else they may take all that is wished.
    within = 0.0 if recovering and offers else limits.latency
    yield from _realized(menus, offers, training, limits, within)


def _realized(
    menus: Mapping[str, Menu],
    offers: Sequence[Offer],
    training: Training,
    limits: Limits,
    within: float = 0.0,
) -> Iterator[Proposal]:
    """One network in the formats that should be fast, with precisions that are and lose little.

    With a latency, precisions need be no faster than that.
    """
    work = work_of(next(iter(menus.values())), offers)
    shape = recovered(offers, training, work)
    planned = []
    for name, menu in menus.items():
        found = _quick(settle(menu, offers), limits, within)
        planned.append(Proposal("", name, shape, found.precisions, found.latency, work))
    least = min(proposal.latency for proposal in planned)
    yield from (proposal.named() for proposal in planned if proposal.latency <= CLOSE * least)


def _quick(menu: Menu, limits: Limits, within: float) -> Plan:
    """Of the fast precisions those that lose little; slower ones where bytes want them."""
    quickest = fastest(menu)
    kept = replace(limits, latency=max(quickest.latency * SLACK, within))
    found = plan(menu, kept)
    if found is None and min(limits.storage, limits.memory) < math.inf:
        found = plan(menu, replace(limits, latency=math.inf)) or nearest(menu, kept)
    return found or quickest


def _another_student(
    menus: Mapping[str, Menu],
    students: Sequence[Offer],
    attempts: Sequence[Attempt],
    wishes: Sequence[float],
    training: Training,
    limits: Limits,
) -> Iterator[Proposal]:
    """The student that comes nearest to a latency that is wished, of those that were not tried."""
    if not training.is_possible:
        return
    tried = {place for attempt in attempts for place in attempt.proposal.reshaped}
    fresh = [offer for offer in students if (offer.part, offer.choice) not in tried]
    menu = next(iter(menus.values()))
    latencies = [whole(settle(menu, [offer])).latency for offer in fresh]
    distances = [
        (abs(math.log(latency / wished)), number)
        for number, latency in enumerate(latencies)
        for wished in wishes
    ]
    if distances and min(distances)[0] < math.log(NEAR):
        yield from _realized(menus, [fresh[min(distances)[1]]], training, limits)


def work_of(menu: Menu, offers: Sequence[Offer]) -> float:
    """What the network computes after the offers, as a share of the whole one, in float."""
    return whole(settle(menu, offers)).latency / whole(menu).latency


def recovered(offers: Sequence[Offer], training: Training, work: float) -> Shape:
    """The offers' choices, and the training that follows them."""
    shape = tuple(sorted((offer.part, offer.choice) for offer in offers))
    steps = training.first_steps(work) if shape else 0
    return (*shape, (NETWORK, training.choice(steps))) if steps else shape


def _longer(attempt: Attempt, training: Training, spent: float) -> Iterator[Proposal]:
    """The same network after more steps, where it answers otherwise than the whole one.

    `spent` are the seconds that others take.
    """
    steps, work = attempt.proposal.steps, attempt.proposal.work
    most = min(steps * LONGER, training.most_steps(work, spent))
    if steps < most and (attempt.drop > 0 or attempt.divergence > NEGLIGIBLE):
        yield attempt.proposal.anew(training.choice(most))


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


def _on_frontier(attempts: Sequence[Attempt]) -> list[Attempt]:
    found = {id(trial) for trial in frontier(attempt.trial for attempt in attempts)}
    return sorted(
        (attempt for attempt in attempts if id(attempt.trial) in found),
        key=lambda attempt: speed(attempt.trial),
    )


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
        for attempt in _on_frontier(rivals):
            cut = attempt.proposal.cut
            if attempt.proposal.steps == steps == longest[cut]:
                # Of the whole network, each way to round it.
                found.setdefault(cut or id(attempt), attempt)
    return sorted(found.values(), key=lambda attempt: speed(attempt.trial))


def _wished(best: Sequence[Attempt]) -> Iterator[float]:
    """Latencies in seconds: beyond the fast end of the frontier, and in its widest gaps."""
    if best and best[0].drop < WITHIN_REACH / 2:
        yield speed(best[0].trial) / BOLDER
    for slow, fast in _gaps(best):
        yield math.sqrt(speed(slow.trial) * speed(fast.trial))


def _gaps(best: Sequence[Attempt]) -> list[tuple[Attempt, Attempt]]:
    """Neighbors on the frontier, the widest gap in latency first."""
    pairs = [(slow, fast) for fast, slow in itertools.pairwise(best)]
    return sorted(pairs, key=lambda pair: speed(pair[1].trial) / speed(pair[0].trial))[:2]
