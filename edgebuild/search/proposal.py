"""A recipe to be, and what became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgebuild.search.frontier import frontier, speed
from edgebuild.vocabulary.offer import NETWORK, Choice, Part
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.trial import Trial

Shape = tuple[tuple[Part, Choice], ...]


@dataclass(frozen=True)
class Proposal:
    """A recipe to be, while its network does not exist yet: precisions by the layers' paths.

    `latency` (seconds) is what the planner expects; `work` is what the network computes in float,
    as a share of the whole network.
    """

    name: str
    format: str
    reshaped: Shape = ()
    precisions: Mapping[str, Precision] = field(default_factory=dict)
    latency: float = 0.0
    work: float = 1.0

    @property
    def trainings(self) -> list[str]:
        """How its network is trained; empty where it is not."""
        return [choice.option for _, choice in self.reshaped if choice.method == "distill"]

    @property
    def steps(self) -> int:
        """The steps that its network is trained for; 0 where it is not."""
        return next((int(option.split()[0]) for option in self.trainings), 0)

    @property
    def cut(self) -> Shape:
        """What is left of the network, however it was trained and rounded."""
        return self.without("distill", "round")

    def without(self, *methods: str) -> Shape:
        """What is done to its network besides these methods."""
        return tuple(place for place in self.reshaped if place[1].method not in methods)

    def anew(self, choice: Choice) -> Proposal:
        """The same with this choice for the whole network, in place of its method's former one."""
        reshaped = (*self.without(choice.method), (NETWORK, choice))
        return replace(self, reshaped=reshaped).named()

    def named(self) -> Proposal:
        """Names it by what is done: "prune x 12, distill 400 steps, int8-static"."""
        words = _words(self.reshaped, self.precisions.values())
        return replace(self, name=", ".join(words))


@dataclass(frozen=True)
class Attempt:
    """A proposal and what became of it."""

    proposal: Proposal
    trial: Trial

    @property
    def is_scored(self) -> bool:
        """Whether it came as far as to be scored, which not all do that fail."""
        return "accuracy_drop" in self.trial.figures

    @property
    def drop(self) -> float:
        """The score that it lost on validation data."""
        return self.trial.figures["accuracy_drop"].value

    @property
    def divergence(self) -> float:
        """How far it answers from the whole network, in nats."""
        return self.trial.figures["divergence"].value


def frontier_of(attempts: Sequence[Attempt]) -> list[Attempt]:
    """The attempts that no other beats in both score and latency, the fastest first."""
    found = {id(trial) for trial in frontier(attempt.trial for attempt in attempts)}
    return sorted(
        (attempt for attempt in attempts if id(attempt.trial) in found),
        key=lambda attempt: speed(attempt.trial),
    )


def _words(shape: Iterable[tuple[Part, Choice]], precisions: Iterable[Precision]) -> Iterator[str]:
    options: dict[str, list[str]] = {}
    for part, choice in shape:
        if part != NETWORK:
            options.setdefault(choice.method, []).append(choice.option)
    for method, chosen in options.items():
        alike = f" {chosen[0]}" if len(chosen) > 1 and len(set(chosen)) == 1 else ""
        yield f"{method}{alike} x {len(chosen)}"
    for part, choice in shape:
        if part == NETWORK:
            yield f"{choice.method} {choice.option.removesuffix(', seed 0')}"
    most = Counter(precisions).most_common(2)
    yield " and ".join(str(precision) for precision, _ in most)
