"""Proposes new shapes of the network: the solver's plans, and students."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from edgebuild.search.frontier import WORST_LOSS, speed, volume
from edgebuild.search.integer_program import GAP
from edgebuild.search.learn import Beliefs
from edgebuild.search.menu import Limits, Menu, Plan, offers_of, settle
from edgebuild.search.plan import fastest, nearest, plan, whole
from edgebuild.search.proposal import Attempt, Proposal, Shape, frontier_of
from edgebuild.search.reach import WITHIN_REACH, bearable
from edgebuild.search.training import Training
from edgebuild.vocabulary.offer import NETWORK, Offer
from edgebuild.vocabulary.units import Seconds

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
# A gap on the frontier is worth a plan if filling it would add so much to the hypervolume.
LEAST_GAP = 0.01
# The precisions of a shape may take so much longer than the fastest ones, to lose less.
SLACK = 1.15
# Formats in which a network should take at most so many times as long as in the best one are tried.
CLOSE = 1.1
# A student whose latency is within this factor of what is wished is tried.
NEAR = 1.4
# The share of the most that is trained in one round which new shapes may take together.
SHAPING = 0.5


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
    students: Sequence[Offer],
    limits: Limits,
    training: Training,
    beliefs: Beliefs,
) -> Iterator[Proposal]:
    """What the frontier suggests: plans and a student in its gaps, and something bolder."""
    wishes = list(_wished(attempts))
    plans = partial(_plans, menus, attempts, wishes, limits, training, beliefs)
    student = partial(_another_student, menus, students, attempts, wishes, training, limits)
    for propose in (student, plans) if _students_lead(attempts) else (plans, student):
        yield from propose()


def affordable(proposals: Iterable[Proposal], training: Training) -> Iterator[Proposal]:
    """Only so many new shapes as leave time to train the best of them longer; at least one.

    The same network in another format takes no time.
    """
    spent, shapes = 0.0, set[Shape]()
    for proposal in proposals:
        if proposal.reshaped not in shapes:
            taken = training.seconds(proposal.steps, proposal.work)
            if shapes and spent + taken > training.most * SHAPING:
                return
            spent += taken
            shapes.add(proposal.reshaped)
        yield proposal


def _students_lead(attempts: Sequence[Attempt]) -> bool:
    """Whether the frontier owes more to students than to what was planned part by part."""
    without_plans = [one for one in attempts if not one.proposal.cut or _is_student(one)]
    without_students = [one for one in attempts if not _is_student(one)]
    with_students, with_plans = (
        volume(one.trial for one in some) for some in (without_plans, without_students)
    )
    return with_students > with_plans


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
    scored = [one for one in trained if one.is_scored]
    return bool(scored) and all(map(_is_lost, scored))


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


def _wished(attempts: Sequence[Attempt]) -> Iterator[float]:
    """Latencies in seconds: beyond the fast end of the frontier, and in its gaps."""
    best = [one for one in frontier_of(attempts) if not _is_lost(one)]
    if best and best[0].drop < WITHIN_REACH / 2:
        fastest = speed(best[0].trial)
        bolder = _bolder(fastest, attempts)
        if bolder < fastest * (1 - GAP):
            yield bolder
    for slow, fast in _gaps(best):
        yield math.sqrt(speed(slow.trial) * speed(fast.trial))


def _bolder(fastest: Seconds, attempts: Sequence[Attempt]) -> float:
    """What is faster than the fastest; no more than half the way to what was too fast already."""
    too_fast = [
        one.proposal.latency
        for one in attempts
        if one.proposal.cut and not _is_student(one) and _is_lost(one)
    ]
    nearest = max((latency for latency in too_fast if latency < fastest), default=0.0)
    return max(fastest / BOLDER, math.sqrt(nearest * fastest))


def _is_lost(attempt: Attempt) -> bool:
    """Whether its score is out of reach; of what failed before it was scored nobody knows."""
    return attempt.is_scored and attempt.drop > WITHIN_REACH


def _gaps(best: Sequence[Attempt]) -> list[tuple[Attempt, Attempt]]:
    """Neighbors on the frontier that leave the most between them, in score and in latency."""
    pairs = [(slow, fast) for fast, slow in itertools.pairwise(best)]
    wide = [pair for pair in pairs if _gap(*pair) >= LEAST_GAP]
    return sorted(wide, key=lambda pair: -_gap(*pair))[:2]


def _gap(slow: Attempt, fast: Attempt) -> float:
    """What the frontier's hypervolume would gain by the speed of one at the score of the other."""
    halvings = math.log2(speed(slow.trial) / speed(fast.trial))
    return (slow.trial.score - fast.trial.score) / WORST_LOSS * halvings
