"""Proves the chosen candidate on data that nobody has looked at, and on a longer clock."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgebuild.search.accuracy import accuracy_of
from edgebuild.search.case import Case
from edgebuild.search.judge import judge
from edgebuild.search.make import Made
from edgebuild.search.measure import (
    PROVING,
    figures_of,
    measurement_of,
    outputs_of,
    parity_of,
)
from edgebuild.vocabulary.contracts import Device, Progress
from edgebuild.vocabulary.measurement import Figure, Measurement
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.trial import Parity
from edgebuild.vocabulary.verdict import Verdict

GOLDEN_SAMPLES = 4
# What another CPU's or release's kernels may add: other orders of summation in float, another
# half-precision arithmetic, other roundings of eight bits (tflite-runtime 2.14 was seen to differ
# by 12 % of the largest output from LiteRT 2.3 at the same signal-to-noise ratio).
GOLDEN_LIMITS = {Precision.FP32: 1e-3, Precision.FP16: 2e-2}
GOLDEN_LIMIT_INTEGER = 0.15


@dataclass(frozen=True)
class Proof:
    """The chosen artifact on the test split, with golden inputs and outputs to replay."""

    made: Made
    float_score: float
    figures: dict[str, Figure]
    verdict: Verdict
    parity: Parity
    measurement: Measurement
    golden_inputs: list[np.ndarray]
    golden_outputs: list[np.ndarray]
    golden_limit: float


def prove(case: Case, made: Made, device: Device, progress: Progress) -> Proof:
    """Runs the test split and measures at length; the first look that anyone takes at it.

    Raises:
        ParityLost: on these samples the artifact does not compute what its network does.
    """
    with progress.step("Proving on test data", total=3) as step:
        float_score = case.own_score(case.test)
        step.advance()
        outputs = outputs_of(case, made.artifact, case.test, device)
        found = parity_of(case, made, outputs, case.test)
        accuracy = accuracy_of(case, outputs, case.test)
        step.advance()
        measurement = measurement_of(case, made.artifact, device, PROVING)
        step.advance()
    figures = figures_of(case, made, measurement, accuracy, device)
    validated = outputs_of(case, made.artifact, case.validation, device)
    precisions = set(made.recipe.precisions.values())
    limits = [GOLDEN_LIMITS.get(precision, GOLDEN_LIMIT_INTEGER) for precision in precisions]
    return Proof(
        made=made,
        float_score=float_score,
        figures=figures,
        verdict=judge(figures, case.budget, case.target),
        parity=found,
        measurement=measurement,
        golden_inputs=[np.array(array[:GOLDEN_SAMPLES]) for array in case.validation.inputs()],
        golden_outputs=[output[:GOLDEN_SAMPLES] for output in validated],
        golden_limit=max(limits, default=GOLDEN_LIMITS[Precision.FP32]),
    )
