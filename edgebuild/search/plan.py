"""Plans with a mixed-integer program: one choice at every part and layer, within limits.

All families compete in one program. Coupled channels have one width, so what a layer costs
depends on the widths of what it reads and of what it puts out; a factorized layer is thin layers;
a skipped block costs nothing; every layer has one precision. Losses are taken to add up, which
measurement corrects.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgebuild.search.integer_program import TIE, IntegerProgram, Weight, of_one
from edgebuild.search.menu import Limits, Menu, Plan, settle
from edgebuild.vocabulary.offer import Offer
from edgebuild.vocabulary.precision import Precision

# What an offer without a loss of its own, such as a whole student, is taken to lose, in nats.
UNKNOWN_LOSS = 1.0


def _evenly(form: str) -> float:
    return 1.0


def plan(menu: Menu, limits: Limits, weight: Weight = _evenly) -> Plan | None:
    """The least loss within the limits; None where nothing keeps them.

    `weight` scales the losses of a form (a choice's, or "quantize") by what measurements have shown
    of it.
    """
    program = IntegerProgram(menu, weight)
    found = program.least_loss(limits)
    return None if found is None else program.read(found)


def nearest(menu: Menu, limits: Limits) -> Plan:
    """What exceeds the limits least, where nothing keeps them."""
    program = IntegerProgram(menu, _evenly)
    found = program.approach(limits)
    assert found is not None, "every limit may be exceeded"
    return program.read(found[0])


def whole(menu: Menu) -> Plan:
    """The least loss, however long it takes: the network as it is."""
    found = plan(settle(menu, ()), Limits())
    assert found is not None, "without limits there is a solution"
    return found


def fastest(menu: Menu, loss: float = math.inf) -> Plan:
    """The least latency that any choices reach, of those that lose so many nats at most.

    Where all lose more: the least latency of any.
    """
    program = IntegerProgram(menu, _evenly)
    objective = of_one(program.seconds) + TIE * of_one(program.loss)
    for limits in (Limits(loss=loss), Limits()):
        found = program.solve(objective, limits)
        if found is not None:
            return program.read(found)
    raise AssertionError("without limits there is a solution")


def appraise(menu: Menu, offers: Sequence[Offer], precisions: Mapping[str, Precision]) -> Plan:
    """What these offers and precisions (fp32 unless given) should come to.

    Raises:
        LookupError: a layer does not have its precision on the menu.
    """
    settled = settle(menu, offers)
    picked = {path: precisions.get(path, Precision.FP32) for path in settled.layers}
    only = {path: {chosen: menu.precisions[path][chosen]} for path, chosen in picked.items()}
    found = whole(replace(settled, precisions=only))
    known = {(one.offer.part, one.offer.choice): one.loss for one in menu.offers}
    losses = defaultdict(float, found.losses)
    for offer in offers:
        losses[offer.choice.form] += known.get((offer.part, offer.choice), UNKNOWN_LOSS)
    reshaped = tuple((offer.part, offer.choice) for offer in offers)
    return replace(found, reshaped=reshaped, losses=dict(losses))
