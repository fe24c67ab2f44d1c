"""The mixed-integer program of a menu: what can be picked, what must hold, and what it costs."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from edgebuild.search.menu import Limits, Menu, Plan, Shapes, Weighed, glue_behind, shapes_after
from edgebuild.vocabulary.offer import Part, activations, weights
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.units import Bytes, Seconds

# Losses are known to no such share, so no better solution is worth waiting for.
GAP = 0.05
# Seconds for a plan; where none is found in these, it may take longer once.
TIME_LIMIT, PATIENCE = 6.0, 20.0
# Where the least loss is not found in time, it is searched for from next to none on: so many
# halvings of its logarithm leave an eighth.
LEAST_LOSS, HALVINGS = 1e-6, 7
# scipy's word for it.
OUT_OF_TIME = 1
# A layer's cost is exact in this many widths; what further ones save is added up.
EXACT_WIDTHS = 2
# What a limit may be exceeded by for want of digits, as a share.
TOLERANCE = 1e-6
# How little the second objective counts: it only decides between equals of the first.
TIE = 1e-4
# The precisions whose layers pass integers to each other.
STATIC = (Precision.INT8_STATIC, Precision.INT4_WEIGHTS)

Weight = Callable[[str], float]
# Factors by column, and between which bounds their sum lies.
Row = tuple[dict[int, float], float, float]


class IntegerProgram:
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
        little for minutes. What costs least of all that loses no more than so much it finds at
        once: then that loss is searched for.
        """
        objective = of_one(self.loss) + TIE * of_one(self.seconds)
        best, is_least = self._solved(objective, self._kept(limits), (TIME_LIMIT,))
        if is_least:
            return best
        if best is None:
            found = self.approach(limits)
            if found is None or not _is_within(found):
                return None
            best = found[0]
        least = LEAST_LOSS
        for _ in range(HALVINGS):
            between = math.sqrt(least * max(float(self.loss @ best), least))
            found = self.approach(replace(limits, loss=between))
            if found is not None and _is_within(found):
                best = found[0]
            else:
                least = between
        return best

    def solve(self, objective: np.ndarray, limits: Limits) -> np.ndarray | None:
        """What has the least of an objective within the limits; None where nothing is found."""
        return self._solved(objective, self._kept(limits))[0]

    def approach(self, limits: Limits) -> tuple[np.ndarray, float] | None:
        """What exceeds its worst limit by the least factor, and that factor.

        It is one more column, above every share. None where the loss cannot be kept.
        """
        factor = len(self.loss)
        costs, loss = replace(limits, loss=math.inf), Limits(loss=limits.loss)
        below = [(row | {factor: -1.0}, -math.inf, 0.0) for row in self._shares(costs)]
        objective = np.append(TIE * of_one(self.loss), 1.0)
        x, _ = self._solved(objective, [*below, *self._kept(loss)])
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

    def _kept(self, limits: Limits) -> list[Row]:
        return [(row, -math.inf, 1.0) for row in self._shares(limits)]

    def _solved(
        self,
        objective: np.ndarray,
        further: Sequence[Row],
        patience: Sequence[float] = (TIME_LIMIT, PATIENCE),
    ) -> tuple[np.ndarray | None, bool]:
        """What has the least of an objective within further rows, and whether that is proven.

        It has further columns, from 0 on, where the objective has. Nothing, and that is proven,
        where nothing keeps the rows.
        """
        columns = len(self.loss)
        added = len(objective) - columns
        constraints = [
            _constraint(rows, matrix, len(objective))
            for rows, matrix in (
                (self._rows, self._structure),
                (further, _matrix(further, len(objective))),
            )
            if rows
        ]
        for limit in patience:
            found = milp(
                objective,
                integrality=np.append(self._is_binary, np.zeros(added)),
                bounds=Bounds(0, np.append(np.ones(columns), np.full(added, np.inf))),
                constraints=constraints,
                options={"mip_rel_gap": GAP, "time_limit": limit},
            )
            if found.x is not None or found.status != OUT_OF_TIME:
                break
        return found.x, found.status != OUT_OF_TIME

    @cached_property
    def _structure(self) -> csr_array:
        """The rows that hold whatever the limits are."""
        return _matrix(self._rows, len(self.loss))

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
            losses[weighed.offer.choice.form] += weighed.loss
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
                factor = self._weight(weighed.offer.choice.form)
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
            shapes = shapes_after(path, self._menu.layers[path], taken)
            yield tuple(column for column, _ in options), shapes

    def _cost(self, path: str, shapes: Shapes, precision: Precision) -> tuple[float, float]:
        seconds = sum(self._menu.seconds(shape, precision) for shape in shapes)
        size = sum(weights(shape) for shape in shapes) * precision.weight_bits / 8
        return seconds + glue_behind(self._menu, path, shapes), size

    def _add_savings(self, path: str, part: Part) -> None:
        """What a further width saves by itself, in the layer's first precision."""
        precision = next(iter(self._precisions[path]))
        shapes = self._menu.layers[path]
        whole = self._cost(path, shapes, precision)
        for column, weighed in self._options[part]:
            if weighed:
                part_cost = self._cost(path, shapes_after(path, shapes, [weighed.offer]), precision)
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


def _element(precision: Precision) -> int:
    """Bytes of an activation: calibrated integers take one each."""
    return 1 if precision in STATIC else 4


def _matrix(rows: Sequence[Row], columns: int) -> csr_array:
    """The factors of rows."""
    counts = [0, *itertools.accumulate(len(row) for row, _, _ in rows)]
    values = np.fromiter((v for row, _, _ in rows for v in row.values()), float, counts[-1])
    places = np.fromiter((c for row, _, _ in rows for c in row), np.int64, counts[-1])
    return csr_array((values, places, counts), shape=(len(rows), columns))


def _constraint(rows: Sequence[Row], matrix: csr_array, columns: int) -> LinearConstraint:
    """That every row lies between its bounds; of columns beyond the matrix nothing is in it."""
    parts = (matrix.data, matrix.indices, matrix.indptr)
    wide = csr_array(parts, shape=(len(rows), columns))
    return LinearConstraint(wide, [low for _, low, _ in rows], [high for _, _, high in rows])


def _is_within(found: tuple[np.ndarray, float]) -> bool:
    return found[1] <= 1 + TOLERANCE


def of_one(values: np.ndarray) -> np.ndarray:
    """Nats and seconds brought to one scale, so that one can break the other's ties."""
    return values / max(float(np.abs(values).max()), 1e-30)


def _positive(limit: float, cost: np.ndarray) -> float:
    """A limit that costs can be shares of, where one is below what any choice takes."""
    return max(limit, 1e-6 * float(cost.sum()), 1e-12)
