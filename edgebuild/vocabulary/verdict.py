"""Whether a bundle keeps its budget: line by line, and as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from edgebuild.vocabulary.measurement import Figure


class Status(StrEnum):
    """`met` is measured on the target; an estimate inside the budget is only `predicted`."""

    MET = "met"
    PREDICTED = "predicted"
    UNKNOWN = "unknown"
    BREACHED = "breached"


@dataclass(frozen=True)
class BudgetLine:
    """One wish against one figure; both in SI units, None where there is no figure."""

    name: str
    limit: float
    figure: Figure | None
    status: Status
    reason: str = ""

    @property
    def overrun(self) -> float:
        """By which factor the figure exceeds the limit; at most 1 where it keeps it."""
        if self.figure is None:
            return 0.0
        if self.limit == 0:
            return float("inf") if self.figure.value > 0 else 1.0
        return self.figure.value / self.limit


@dataclass(frozen=True)
class Verdict:
    """All budget lines of one artifact."""

    lines: tuple[BudgetLine, ...]

    @property
    def status(self) -> Status:
        """The worst line's; a verdict without lines is met."""
        order = (Status.BREACHED, Status.UNKNOWN, Status.PREDICTED)
        found = {line.status for line in self.lines}
        return next((status for status in order if status in found), Status.MET)

    @property
    def binding(self) -> BudgetLine | None:
        """The line that is exceeded the most; if none is breached, that leaves the least room."""
        known = [line for line in self.lines if line.figure is not None]
        breached = [line for line in known if line.status is Status.BREACHED]
        return max(breached or known, key=lambda line: line.overrun, default=None)

    @property
    def overrun(self) -> float:
        """The worst factor among the breached lines, 0 where none is."""
        breached = [line.overrun for line in self.lines if line.status is Status.BREACHED]
        return max(breached, default=0.0)
