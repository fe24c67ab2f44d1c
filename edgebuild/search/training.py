"""Says how long changed networks are trained: as many steps as there is time for."""

from __future__ import annotations

from dataclasses import dataclass

from edgebuild.vocabulary.offer import Choice

# Few lengths, so that what was trained once is found again. Fewer steps ruin what they begin with.
STEPS = (100, 200, 400, 800, 1600, 3200, 6400, 12800)
# After fewer steps than this, large networks told little: their scores were still falling. A first
# training is as long if there is time for it at all.
TELLING = 200
# What a step takes beside the student, as a share of one with the whole network, where it is not
# measured: mostly the teacher's pass forward, which is spared where its answers are known.
TEACHER = 0.15
# What is small on a device is not as small in training, where operators are called one by one.
LEAST_WORK = 0.05
# What a network that is cut deeply computes, as a share of the whole one.
CUT_DEEPLY = 0.25


@dataclass(frozen=True)
class Training:
    """How networks recover.

    Attributes:
        first: the seconds that a network is trained for at first.
        most: the seconds that those may be trained for, all together, which have shown promise.
        step: the seconds that a step takes with the whole network as the student; None where
            nothing may be trained.
        teacher: the share of it that does not depend on the student.
        seed: what batches are drawn from.
        roundings: the ways to round more finely than to the nearest, best first.
    """

    first: float = 0.0
    most: float = 0.0
    step: float | None = None
    teacher: float = TEACHER
    seed: int = 0
    roundings: tuple[Choice, ...] = ()

    @property
    def is_possible(self) -> bool:
        """Whether there is time to train a network that is cut deeply."""
        return self.first_steps(CUT_DEEPLY) > 0

    def first_steps(self, work: float) -> int:
        """How many steps a network is trained for at first; 0 where there is no time for any.

        `work` is what it computes, as a share of the whole network.
        """
        telling = min(TELLING, self._steps(self.most, work))
        return max(self._steps(self.first, work), telling)

    def most_steps(self, work: float, spent: float = 0.0) -> int:
        """How many steps there is time for, when others take so many seconds of it."""
        return self._steps(self.most - spent, work)

    def choice(self, steps: int, grid: str = "") -> Choice:
        qat = f", qat {grid}" if grid else ""
        return Choice("distill", f"{steps} steps{qat}, seed {self.seed}")

    def seconds(self, steps: int, work: float) -> float:
        """What a training of so many steps takes."""
        share = self.teacher + (1 - self.teacher) * max(work, LEAST_WORK)
        return steps * (self.step or 0.0) * share

    def _steps(self, seconds: float, work: float) -> int:
        if self.step is None:
            return 0
        lengths = (steps for steps in STEPS if self.seconds(steps, work) <= seconds)
        return max(lengths, default=0)


def teachers_share(step: float, smaller: float, work: float) -> float:
    """The share of a step that does not depend on the student.

    `step` is what one takes with the whole network, and `smaller` with one that computes `work` of
    it, in the same unit.
    """
    work = max(work, LEAST_WORK)
    share = (smaller / step - work) / (1 - work)
    return min(max(share, 0.0), 1.0)
