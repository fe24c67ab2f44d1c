"""Plans with a mixed-integer program: one choice at every part and layer, within limits.

All families compete in one program. Coupled channels have one width, so what a layer costs
depends on the widths of what it reads and of what it puts out; a factorized layer is thin layers;
a skipped block costs nothing; every layer has one precision. Losses are taken to add up, which
measurement corrects.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from edgebuild.search.layers import resized
from edgebuild.vocabulary.offer import Choice, LayerShape, Offer, Part, activations, weights
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.units import Bytes, Seconds

# Losses are known to no such share, so no better solution is worth waiting for.
GAP = 0.05
# Seconds for a plan; where none is found in these, it may take longer once.
TIME_LIMIT, PATIENCE = 6.0, 20.0
# From so many columns on the least loss is searched for, between next to none and what the fastest
# loses: so many halvings of its logarithm leave an eighth.
LARGE, LEAST_LOSS, HALVINGS = 8000, 1e-6, 7
# scipy's word for it.
OUT_OF_TIME = 1
# A layer's cost is exact in this many widths; what further ones save is added up.
EXACT_WIDTHS = 2
# What an offer without a loss of its own, such as a whole student, is taken to lose, in nats.
UNKNOWN_LOSS = 1.0
# What a limit may be exceeded by for want of digits, as a share.
TOLERANCE = 1e-6
# How little the second objective counts: it only decides between equals of the first.
TIE = 1e-4
# The precisions whose layers pass integers to each other.
STATIC = (Precision.INT8_STATIC, Precision.INT4_WEIGHTS)

NO_TIME = Seconds(0.0)

Shapes = tuple[LayerShape, ...]
Weight = Callable[[str], float]
# Factors by column, and between which bounds their sum lies.
Row = tuple[dict[int, float], float, float]


@dataclass(frozen=True)
class Weighed:
    """An offer, and what it alone would lose: KL of the outputs, in nats."""

    offer: Offer
    loss: float


@dataclass(frozen=True)
class Menu:
    """Everything that can be chosen from, for one format.

    Attributes:
        layers: what stands at each layer's path, in the order of execution.
        offers: what methods offer.
        precisions: what each layer may be computed in, with the losses in nats.
        seconds: what a layer takes.
        glue: what the weightless operators behind each layer take.
        fixed: what an inference takes besides.
        conversion: what it takes to quantize or dequantize an element.
    """

    layers: Mapping[str, Shapes]
    offers: tuple[Weighed, ...]
    precisions: Mapping[str, Mapping[Precision, float]]
    seconds: Callable[[LayerShape, Precision], Seconds]
    glue: Mapping[str, Seconds] = field(default_factory=dict)
    fixed: Seconds = NO_TIME
    conversion: Seconds = NO_TIME


@dataclass(frozen=True)
class Limits:
    """What a plan must keep: seconds, bytes of weights, bytes of weights with the activations of
    any one layer, and nats that may be lost; infinite where nothing is wished."""

    latency: float = math.inf
    storage: float = math.inf
    memory: float = math.inf
    loss: float = math.inf


@dataclass(frozen=True)
class Plan:
    """What is picked, and what it should come to; `losses` are in nats by family."""

    reshaped: tuple[tuple[Part, Choice], ...]
    precisions: Mapping[str, Precision]
    latency: Seconds
    storage: Bytes
    memory: Bytes
    losses: Mapping[str, float]


def _evenly(family: str) -> float:
    return 1.0


def plan(menu: Menu, limits: Limits, weight: Weight = _evenly) -> Plan | None:
    """The least loss within the limits; None where nothing keeps them.

    `weight` scales the losses of a family (a method's name, or "quantize") by what measurements
    have shown of it.
    """
    program = _Program(menu, weight)
    found = program.least_loss(limits)
    return None if found is None else program.read(found)


def nearest(menu: Menu, limits: Limits) -> Plan:
    """What exceeds the limits least, where nothing keeps them."""
    program = _Program(menu, _evenly)
    found = program.approach(limits)
    assert found is not None, "every limit may be exceeded"
    return program.read(found[0])


def whole(menu: Menu) -> Plan:
    """The least loss, however long it takes: the network as it is."""
    found = plan(menu, Limits())
    assert found is not None, "without limits there is a solution"
    return found


def fastest(menu: Menu, loss: float = math.inf) -> Plan:
    """The least latency that any choices reach, of those that lose so many nats at most.

    Where all lose more: the least latency of any.
    """
    program = _Program(menu, _evenly)
    objective = _of_one(program.seconds) + TIE * _of_one(program.loss)
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
        losses[offer.choice.method] += known.get((offer.part, offer.choice), UNKNOWN_LOSS)
    reshaped = tuple((offer.part, offer.choice) for offer in offers)
    return replace(found, reshaped=reshaped, losses=dict(losses))


def _element(precision: Precision) -> int:
    """Bytes of an activation: calibrated integers take one each."""
    return 1 if precision in STATIC else 4


def _of_one(values: np.ndarray) -> np.ndarray:
    """Nats and seconds brought to one scale, so that one can break the other's ties."""
    return values / max(float(np.abs(values).max()), 1e-30)


def _positive(limit: float, cost: np.ndarray) -> float:
    """A limit that costs can be shares of, where one is below what any choice takes."""
    return max(limit, 1e-6 * float(cost.sum()), 1e-12)


def offers_of(menu: Menu, reshaped: Iterable[tuple[Part, Choice]]) -> list[Offer]:
    """The offers of the menu that changes to a network are made of."""
    chosen = set(reshaped)
    offers = [weighed.offer for weighed in menu.offers]
    return [offer for offer in offers if (offer.part, offer.choice) in chosen]


def settle(menu: Menu, made: Sequence[Offer]) -> Menu:
    """The menu when these offers are taken: only precisions are open."""
    removed = frozenset[str]().union(*(offer.removed for offer in made))
    layers = {
        path: _taken(path, shapes, made)
        for path, shapes in menu.layers.items()
        if path not in removed
    }
    glue = {path: _glue(menu, path, shapes) for path, shapes in layers.items() if path in menu.glue}
    return replace(menu, layers=layers, offers=(), glue=glue)


def _taken(path: str, shapes: Shapes, taken: Sequence[Offer]) -> Shapes:
    """What stands at a path after offers: widths lose what each alone would take from them."""
    first, last = shapes[0], shapes[-1]
    inputs = first.inputs - sum(first.inputs - o.inputs.get(path, first.inputs) for o in taken)
    outputs = last.outputs - sum(last.outputs - o.outputs.get(path, last.outputs) for o in taken)
    for offer in taken:
        shapes = offer.replaced.get(path, shapes)
    if len(shapes) == 1:
        return (resized(shapes[0], max(inputs, 1), max(outputs, 1)),)
    head, *middle, tail = shapes
    # A depthwise layer puts out as many channels as it reads, whatever comes after it.
    into = max(inputs, 1) if head.kind is LayerKind.DEPTHWISE else head.outputs
    head = resized(head, max(inputs, 1), into)
    tail = resized(tail, middle[-1].outputs if middle else into, max(outputs, 1))
    return (head, *middle, tail)


def _glue(menu: Menu, path: str, shapes: Shapes) -> Seconds:
    """Weightless operators take as long as there are channels."""
    return Seconds(
        menu.glue.get(path, 0.0) * shapes[-1].outputs / max(menu.layers[path][-1].outputs, 1)
    )


class _Program:
    """The mixed-integer program: columns are what can be picked, rows what must hold.

    Binary columns pick an offer (or none) at each part, and a precision for each layer; a
    continuous column for each combination at a layer is forced to 1 where all of it is picked.
    """

    def __init__(self, menu: Menu, weight: Weight) -> None:
        self._menu, self._weight = menu, weight
        self._columns: list[tuple[float, float, float, bool]] = []
        self._rows: list[Row] = []
        self._options: dict[Part, list[tuple[int, Weighed | None]]] = {}
        self._precisions: dict[str, dict[Precision, int]] = {}
        self._activations: dict[str, dict[int, float]] = {}
        for part in dict.fromkeys(weighed.offer.part for weighed in menu.offers):
            self._add_part(part)
        for path in menu.layers:
            self._add_layer(path)
        for before, after in itertools.pairwise(menu.layers):
            self._add_border(before, after)
        table = np.array(self._columns, dtype=np.float64).reshape(-1, 4)
        self.loss, self.seconds, self._bytes, self._is_binary = table.T

    def least_loss(self, limits: Limits) -> np.ndarray | None:
        """What loses least within the limits; None where nothing keeps them.

        Asked for the least loss within a limit on what many offers cost, the solver may find
        nothing for minutes. What costs least of all that loses no more than so much it finds at
        once: then that loss is searched for.
        """
        if len(self.loss) <= LARGE or limits == Limits():
            objective = _of_one(self.loss) + TIE * _of_one(self.seconds)
            found = self.solve(objective, limits)
            if found is not None or len(self.loss) <= LARGE:
                return found
        fastest = self.approach(limits)
        if fastest is None or fastest[1] > 1 + TOLERANCE:
            return None
        best, least = fastest[0], LEAST_LOSS
        for _ in range(HALVINGS):
            between = math.sqrt(least * max(float(self.loss @ best), least))
            tried = self.approach(replace(limits, loss=between))
            if tried is not None and tried[1] <= 1 + TOLERANCE:
                best = tried[0]
            else:
                least = between
        return best

    def solve(self, objective: np.ndarray, limits: Limits) -> np.ndarray | None:
        """What has the least of an objective within the limits; None where nothing is found."""
        kept = [(row, -math.inf, 1.0) for row in self._shares(limits)]
        return self._solved(objective, [*self._rows, *kept])

    def approach(self, limits: Limits) -> tuple[np.ndarray, float] | None:
        """What exceeds its worst limit by the least factor, and that factor.

        It is one more column, above every share. None where the loss cannot be kept.
        """
        factor = len(self.loss)
        costs, loss = replace(limits, loss=math.inf), Limits(loss=limits.loss)
        below = [(row | {factor: -1.0}, -math.inf, 0.0) for row in self._shares(costs)]
        kept = [(row, -math.inf, 1.0) for row in self._shares(loss)]
        objective = np.append(TIE * _of_one(self.loss), 1.0)
        x = self._solved(objective, [*self._rows, *below, *kept])
        return None if x is None else (x[:factor], float(x[factor]))

    def _shares(self, limits: Limits) -> Iterator[dict[int, float]]:
        """What each column takes of each limit; the solver's tolerances want numbers near one."""
        costs = [
            (self.seconds, limits.latency - self._menu.fixed),
            (self._bytes, limits.storage),
            (self.loss, limits.loss),
        ]
        for cost, limit in costs:
            if limit < math.inf:
                yield dict(enumerate(cost / _positive(limit, cost)))
        if limits.memory < math.inf:
            limit = _positive(limits.memory, self._bytes)
            for row in self._activations.values():
                held = self._bytes / limit
                held[list(row)] += np.array(list(row.values())) / limit
                yield dict(enumerate(held))

    def _solved(self, objective: np.ndarray, rows: Sequence[Row]) -> np.ndarray | None:
        entries = [(v, r, c) for r, (row, _, _) in enumerate(rows) for c, v in row.items()]
        values, at_rows, at_columns = zip(*entries, strict=True)
        matrix = csr_array((values, (at_rows, at_columns)), shape=(len(rows), len(objective)))
        columns = len(self.loss)
        further = len(objective) - columns
        for limit in (TIME_LIMIT, PATIENCE):
            found = milp(
                objective,
                integrality=np.append(self._is_binary, np.zeros(further)),
                bounds=Bounds(0, np.append(np.ones(columns), np.full(further, np.inf))),
                constraints=LinearConstraint(
                    matrix, [low for _, low, _ in rows], [high for _, _, high in rows]
                ),
                options={"mip_rel_gap": GAP, "time_limit": limit},
            )
            if found.x is not None or found.status != OUT_OF_TIME:
                break
        x: np.ndarray | None = found.x
        return x

    def read(self, x: np.ndarray) -> Plan:
        """What a solution picks, and what it comes to."""
        taken = []
        for options in self._options.values():
            _, weighed = max(options, key=lambda option: x[option[0]])
            if weighed is not None:
                taken.append(weighed)
        precisions = {
            path: max(columns, key=lambda precision: x[columns[precision]])
            for path, columns in self._precisions.items()
        }
        losses: dict[str, float] = defaultdict(float)
        for weighed in taken:
            losses[weighed.offer.choice.method] += weighed.loss
        for path, precision in precisions.items():
            losses["quantize"] += self._menu.precisions[path][precision]
        return Plan(
            reshaped=tuple((weighed.offer.part, weighed.offer.choice) for weighed in taken),
            precisions=precisions,
            latency=Seconds(float(self.seconds @ x) + self._menu.fixed),
            storage=Bytes(round(float(self._bytes @ x))),
            memory=Bytes(round(float(self._bytes @ x) + self._most_activations(x))),
            losses=dict(losses),
        )

    def _most_activations(self, x: np.ndarray) -> float:
        rows = self._activations.values()
        return max((sum(x[c] * size for c, size in row.items()) for row in rows), default=0.0)

    # ---- columns

    def _column(
        self, loss: float = 0.0, seconds: float = 0.0, size: float = 0.0, is_binary: bool = True
    ) -> int:
        self._columns.append((loss, seconds, size, is_binary))
        return len(self._columns) - 1

    def _row(self, row: dict[int, float], low: float, high: float) -> None:
        self._rows.append((row, low, high))

    def _add_part(self, part: Part) -> None:
        options: list[tuple[int, Weighed | None]] = [(self._column(), None)]
        for weighed in self._menu.offers:
            if weighed.offer.part == part:
                factor = self._weight(weighed.offer.choice.method)
                options.append((self._column(loss=weighed.loss * factor), weighed))
        self._options[part] = options
        self._row({column: 1.0 for column, _ in options}, 1.0, 1.0)

    def _add_layer(self, path: str) -> None:
        factor = self._weight("quantize")
        self._precisions[path] = {
            precision: self._column(loss=loss * factor)
            for precision, loss in self._menu.precisions[path].items()
        }
        self._row(dict.fromkeys(self._precisions[path].values(), 1.0), 1.0, 1.0)
        exact, added = self._parts_of(path)
        for part in added:
            self._add_savings(path, part)
        total: dict[int, float] = {}
        marginals: dict[int, dict[int, float]] = {}
        for picked, shapes in self._combinations(path, exact):
            for precision, chosen in self._precisions[path].items():
                seconds, size = self._cost(path, shapes, precision)
                column = self._column(seconds=seconds, size=size, is_binary=False)
                held = self._activations.setdefault(path, {})
                held[column] = max(activations(shape) for shape in shapes) * _element(precision)
                total[column] = 1.0
                for owner in (*picked, chosen):
                    marginals.setdefault(owner, {})[column] = 1.0
        # A combination needs everything in it to be picked; without its block, there is none.
        self._row(total | dict.fromkeys(self._removers(path), 1.0), 1.0, 1.0)
        for owner, row in marginals.items():
            self._row(row | {owner: -1.0}, -math.inf, 0.0)

    def _parts_of(self, path: str) -> tuple[list[Part], list[Part]]:
        """The parts that change a layer: those in every combination, and the further widths."""
        widths, others = [], []
        for part, options in self._options.items():
            offers = [weighed.offer for _, weighed in options if weighed]
            if any(path in offer.replaced for offer in offers):
                others.append(part)
            elif any(path in offer.outputs or path in offer.inputs for offer in offers):
                widths.append(part)
        return [*widths[:EXACT_WIDTHS], *others], widths[EXACT_WIDTHS:]

    def _removers(self, path: str) -> list[int]:
        return [
            column
            for options in self._options.values()
            for column, weighed in options
            if weighed and path in weighed.offer.removed
        ]

    def _combinations(
        self, path: str, parts: Sequence[Part]
    ) -> Iterator[tuple[tuple[int, ...], Shapes]]:
        for options in itertools.product(*(self._options[part] for part in parts)):
            taken = [weighed.offer for _, weighed in options if weighed]
            shapes = _taken(path, self._menu.layers[path], taken)
            yield tuple(column for column, _ in options), shapes

    def _cost(self, path: str, shapes: Shapes, precision: Precision) -> tuple[float, float]:
        seconds = sum(self._menu.seconds(shape, precision) for shape in shapes)
        size = sum(weights(shape) for shape in shapes) * precision.weight_bits / 8
        return seconds + _glue(self._menu, path, shapes), size

    def _add_savings(self, path: str, part: Part) -> None:
        """What a further width saves by itself, in the layer's first precision."""
        precision = next(iter(self._precisions[path]))
        shapes = self._menu.layers[path]
        whole = self._cost(path, shapes, precision)
        for column, weighed in self._options[part]:
            if weighed:
                part_cost = self._cost(path, _taken(path, shapes, [weighed.offer]), precision)
                loss, seconds, size, is_binary = self._columns[column]
                saved = (whole[0] - part_cost[0], whole[1] - part_cost[1])
                self._columns[column] = (loss, seconds - saved[0], size - saved[1], is_binary)

    def _add_border(self, before: str, after: str) -> None:
        """Between an integer layer and a float one, what passes is converted."""
        sides = [
            {c: 1.0 for p, c in self._precisions[path].items() if p in STATIC}
            for path in (before, after)
        ]
        if not (sides[0] or sides[1]) or not self._menu.conversion > 0:
            return
        shape = self._menu.layers[after][0]
        elements = shape.inputs * math.prod(shape.extent)
        border = self._column(seconds=self._menu.conversion * elements, is_binary=False)
        for one, other in itertools.permutations(sides):
            row = one | dict.fromkeys(other, -1.0) | {border: -1.0}
            self._row(row, -math.inf, 0.0)
