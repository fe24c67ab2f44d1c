"""What a choice of distillation says: how many steps, from which seed, on which grid."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from enum import StrEnum

from edgebuild.vocabulary.errors import MethodFailed


class Grid(StrEnum):
    """The symmetric grid that weights are rounded to, one scale for each output channel."""

    INT8 = "int8"
    INT4 = "int4"

    @property
    def steps(self) -> int:
        """The steps on either side of zero."""
        return {"int8": 127, "int4": 7}[self.value]


# A hundred rows forward are about as much work as a step of 32 rows: a quarter of the work of
# training may go into looking.
FEWEST_STEPS_BETWEEN_LOOKS = 20
ROWS_A_STEP = 25

# The share of the steps that a changed network learns in float, before it does on a grid.
FLOAT_SHARE = 0.75

_NUMBER = "0|[1-9][0-9]*"
_TEXT = re.compile(rf"([1-9][0-9]*) steps(?:, qat ({'|'.join(Grid)}))?, seed ({_NUMBER})")


@dataclass(frozen=True)
class Plan:
    """Training of so many steps; with a grid, quantization-aware."""

    steps: int
    grid: Grid | None = None
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> Plan:
        """Reads "400 steps, seed 0" and "200 steps, qat int8, seed 0"; `str` writes them.

        Raises:
            MethodFailed: any other text.
        """
        match = _TEXT.fullmatch(text)
        if not match:
            raise MethodFailed(
                f"the network: distill cannot read {text!r}: "
                'write "400 steps, seed 0" or "200 steps, qat int8, seed 0"'
            )
        steps, grid, seed = match.groups()
        return cls(int(steps), Grid(grid) if grid else None, int(seed))

    def parted(self) -> tuple[Plan, Plan]:
        """The steps in float, and the steps on the grid after them; as many in all, but for one."""
        floating = max(round(FLOAT_SHARE * self.steps), 1)
        on_grid = max(self.steps - floating, 1)
        return replace(self, steps=floating, grid=None), replace(self, steps=on_grid)

    def __str__(self) -> str:
        grid = f", qat {self.grid}" if self.grid else ""
        return f"{self.steps} steps{grid}, seed {self.seed}"


@dataclass(frozen=True)
class Settings:
    """What all trainings have in common.

    Attributes:
        batch_size: rows a step, beside those that a light step gets in addition.
        learning_rate: its highest, for networks with BatchNorm; the others take a tenth.
        temperature: softens the classes of teacher and student.
        label_weight: the share of the labels in the loss, where they are class ids that the
            teacher knows.
        feature_weight: the weight of intermediate features that have the same shape in both.
        light_step: a step of no more floating-point operations than this gets as many images
            again, varied for the teacher to label: calling the operators takes as long.
        heavy_step: where a step of the whole network takes more than this, all steps have fewer
            images, down to the fewest that BatchNorm's statistics can be taken of: more steps teach
            more.
        most_passes: trainings that pass more often than this over the same images vary half of
            each batch, however long a step takes.
        looks: how often the validation split is looked at, the first time before any training.
        patience: looks without a better score after which training ends.
    """

    batch_size: int = 32
    learning_rate: float = 5e-3
    temperature: float = 2.0
    label_weight: float = 0.5
    feature_weight: float = 1.0
    light_step: float = 4e9
    heavy_step: float = 5e10
    most_passes: int = 20
    looks: int = 11
    patience: int = 8

    def steps_between_looks(self, steps: int, rows: int) -> int:
        """Fewer looks in a short training, and at many rows: one takes as long as some steps do."""
        evenly = math.ceil(steps / (self.looks - 1))
        return max(FEWEST_STEPS_BETWEEN_LOOKS, rows // ROWS_A_STEP, evenly)
