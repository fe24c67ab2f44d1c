"""Closes the loop: plans, makes, measures and learns, until the frontier stands or time is up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from pydantic import TypeAdapter

from edgebuild.cache import digest, this_machine
from edgebuild.search.case import Case
from edgebuild.search.found import Found
from edgebuild.search.frontier import speed, volume
from edgebuild.search.further import further
from edgebuild.search.hopeless import refuse_hopeless
from edgebuild.search.journal import Journal, Round
from edgebuild.search.judge import choose
from edgebuild.search.learn import believed, learn
from edgebuild.search.make import make
from edgebuild.search.measure import measure
from edgebuild.search.menu import Limits, Menu
from edgebuild.search.pace import FROM_CACHE, Pace, timed
from edgebuild.search.plan import appraise, whole
from edgebuild.search.pricing import menus
from edgebuild.search.proposal import Attempt, Proposal
from edgebuild.search.propose import affordable, first_shapes, next_shapes, opening
from edgebuild.search.reshape import reshaped_program
from edgebuild.search.sensitivity import sensitivity
from edgebuild.search.survey import Survey, survey
from edgebuild.search.training import CUT_DEEPLY, STEPS, Training
from edgebuild.search.uniform import exporters_of, fitted, uniform_recipes
from edgebuild.vocabulary.contracts import Device, Progress
from edgebuild.vocabulary.errors import EdgebuildError, told
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.recipe import Recipe
from edgebuild.vocabulary.trial import Trial
from edgebuild.vocabulary.units import format_time
from edgebuild.vocabulary.verdict import Status

# Without a time that was asked for, a search works until the budget is kept, and at most so long.
PATIENCE = 600.0
# The frontier stands still when so many rounds, of both kinds, add less than this to its
# hypervolume.
STILL, STILL_ROUNDS = 0.01, 3
# How long a network is trained at first and at most, as shares of the time that is left.
FIRST_SHARE, MOST_SHARE = 1 / 8, 1 / 2
# Towards the end a few networks that are trained tell more than many that are not: at first each
# gets this share of the whole time, but no more than this share of what is left.
LEAST_SHARE, LAST_SHARE = 1 / 12, 1 / 4


@dataclass(frozen=True)
class Wishes:
    """What a search may use: formats, precisions, methods, and seconds (None: until it fits)."""

    formats: tuple[str, ...]
    precisions: tuple[Precision, ...]
    methods: tuple[str, ...]
    seconds: float | None = None
    seed: int = 0


def search(
    case: Case,
    wishes: Wishes,
    device: Device,
    progress: Progress,
    begun: float | None = None,
) -> Found:
    """First one precision for all layers; then all methods together, round by round.

    A time that was asked for runs from `begun` on the monotonic clock, now unless given. What is
    tried first is finished all the same: something must be there to be chosen.
    """
    found, begun = Found(), time.monotonic() if begun is None else begun
    try_uniform(case, wishes, found, device, progress)
    if wishes.seconds is None and _is_enough(found.trials):
        return found
    rounds = Rounds(case, wishes, found, device, progress, begun)
    rounds.run()
    return found


def _is_enough(trials: Sequence[Trial]) -> bool:
    """Whether something keeps the budget."""
    best = choose(trials)
    return best is not None and best.verdict.status is not Status.BREACHED


def try_uniform(
    case: Case, wishes: Wishes, found: Found, device: Device, progress: Progress
) -> None:
    refuse_hopeless(case, wishes.formats, wishes.precisions, progress)
    losses = sensitivity(case, progress)
    recipes = uniform_recipes(case, losses, wishes.formats, wishes.precisions)
    made, failed = make(case, recipes, progress)
    for trial in [*measure(case, made, device, progress), *failed]:
        recipe = trial.recipe
        precisions = {site.path: precision for site, precision in recipe.precisions.items()}
        proposal = Proposal(recipe.name, recipe.format, precisions=precisions)
        found.attempts.append(Attempt(proposal, trial))
    found.made += made


@dataclass
class Rounds:
    """The rounds of one search: each proposes, tries and learns.

    `begun` is when a time that was asked for began to run, on the monotonic clock.
    """

    case: Case
    wishes: Wishes
    found: Found
    device: Device
    progress: Progress
    begun: float = field(default_factory=time.monotonic)
    volumes: list[float] = field(default_factory=list)
    pace: Pace = field(default_factory=Pace)

    def run(self) -> None:
        """Repeats what an earlier run of the same search has decided, and goes on from there."""
        journal = Journal(self._folder() / "rounds.json")
        rounds = list(journal.read())
        left = PATIENCE
        if self.wishes.seconds is not None:
            left = self.wishes.seconds - (time.monotonic() - self.begun)
        for known in rounds:
            left -= known.seconds or 0.0
            if known.seconds is not None:
                self.attempt(known.proposals, math.inf)
        if rounds and rounds[-1].seconds is not None and not rounds[-1].proposals:
            self.found.ran_out_of_time = rounds[-1].ran_out_of_time
            return
        deadline = time.monotonic() + left
        while True:
            if not rounds or rounds[-1].seconds is not None:
                proposals = self.propose(deadline)
                rounds.append(Round(tuple(proposals)))
                journal.write(rounds)
            begun = time.monotonic()
            wanted = rounds[-1].proposals
            done = self.attempt(wanted, deadline)
            if wanted and not done:
                self.found.ran_out_of_time = True
            rounds[-1] = Round(done, time.monotonic() - begun, self.found.ran_out_of_time)
            journal.write(rounds)
            if not done:
                return

    def _folder(self) -> Path:
        """Where the journal is: named by everything that decides what is tried."""
        wishes, target, budget = (
            TypeAdapter(type(record)).dump_python(record, mode="json")
            for record in (self.wishes, self.case.target, self.case.budget)
        )
        case = self.case
        data = [case.program.fingerprint, case.calibration.digest, case.validation.digest]
        place = [self.device.name, self.device.identity, this_machine()]
        key = digest(data, case.scoring, wishes, target, budget, place)
        return case.cache.scratch("search", key)

    def propose(self, deadline: float) -> Iterator[Proposal]:
        """What to try next; nothing where the search has done what it can."""
        is_enough = self.wishes.seconds is None and _is_enough(self.found.trials)
        if is_enough or self._stands_still():
            return
        if time.monotonic() >= deadline:
            self.found.ran_out_of_time = True
            return
        survey = self.prepare()
        found = self.found
        if not any(menu.layers for menu in found.menus.values()):
            self.progress.say("no layer is found that anything could be done to")
            return
        training = self.training(deadline - time.monotonic())
        limits = _limits(self.case, found)
        beliefs = found.beliefs
        priced = {name: believed(menu, name, beliefs) for name, menu in found.menus.items()}
        shaping = priced, survey.students, limits, training, beliefs
        new = self._untried(next_shapes(found.attempts, *shaping))
        shapes = partial(affordable, new, training)
        deepening = training, survey.zeros, found.by_rounding, self.wishes.precisions
        deeper = partial(further, found.attempts, *deepening)
        stages: tuple[Callable[[], Iterator[Proposal]], ...] = (
            partial(opening, found.attempts, priced, limits, training, beliefs),
            partial(first_shapes, found.attempts, *shaping),
            # In turns: new shapes are to answer what longer training has come to.
            *((shapes, deeper) if len(self.volumes) % 2 else (deeper, shapes)),
        )
        # Where a network cannot be changed, all of a stage may have been tried as uniform ones.
        for stage in stages[min(len(self.volumes), 2) :]:
            proposals = list(self._untried(stage()))
            if proposals:
                yield from proposals
                return

    def _untried(self, proposals: Iterable[Proposal]) -> Iterator[Proposal]:
        def what(proposal: Proposal) -> tuple[object, ...]:
            precisions = sorted(proposal.precisions.items())
            return proposal.format, self.found.network(proposal), precisions

        tried = [what(attempt.proposal) for attempt in self.found.attempts]
        for proposal in proposals:
            if what(proposal) not in tried:
                tried.append(what(proposal))
                yield proposal

    def prepare(self) -> Survey:
        """Asks once what can be picked, and what it costs."""
        if self.found.survey is None:
            wishes, case = self.wishes, self.case
            runtimes = [runtime for _, runtime in exporters_of(case.target, wishes.formats)]
            # One network for all formats: its widths are what the more demanding runtime likes.
            widest = max(runtimes, key=lambda runtime: runtime.channel_multiple)
            found = survey(case, wishes.methods, widest, self.progress)
            self.found.survey = found
            made, formats = self.found.made, self._formats_by_speed()
            self.found.menus = menus(case, found, made, formats, wishes.precisions, self.progress)
            self._learn()
        return self.found.survey

    def _formats_by_speed(self) -> list[str]:
        """The format that is fastest as a whole is the one that networks are planned for."""
        fastest: dict[str, float] = {}
        for attempt in self.found.attempts:
            if not attempt.trial.failure:
                name, seconds = attempt.proposal.format, speed(attempt.trial)
                fastest[name] = min(seconds, fastest.get(name, math.inf))
        return sorted(fastest, key=lambda name: fastest[name])

    def training(self, left: float) -> Training:
        """How long networks may be trained in the time that is left."""
        measured = self._measured
        if measured.step is None:
            return measured
        left = max(left, 0.0)
        least = min((self.wishes.seconds or PATIENCE) * LEAST_SHARE, left * LAST_SHARE)
        first, most = max(left * FIRST_SHARE, least), left * MOST_SHARE
        training = replace(measured, first=first, most=most, step=measured.step * self.pace.factor)
        if not self.volumes and not training.is_possible:
            taken = format_time(training.seconds(STEPS[0], CUT_DEEPLY))
            self.progress.say(
                f"[yellow]nothing is trained: {STEPS[0]} steps with a quarter of the network take "
                f"{taken}, too much of the time that is left; give more --minutes"
            )
        return training

    @cached_property
    def _measured(self) -> Training:
        """What a step takes; none where nothing is to be trained, or can be."""
        survey = self.prepare()
        training = Training(seed=self.wishes.seed, roundings=survey.roundings)
        if "distill" not in self.wishes.methods:
            return training
        menu = next(iter(self.found.menus.values()))
        return timed(training, self.case, survey.students, menu, self.progress)

    def attempt(self, proposals: Sequence[Proposal], deadline: float) -> tuple[Proposal, ...]:
        """Makes and measures; returns what there was time for."""
        recipes: dict[Recipe, Proposal] = {}
        taken: dict[Recipe, float] = {}
        done: list[Proposal] = []
        with self.progress.step("Changing networks", total=len(proposals)) as step:
            for proposal in proposals:
                if time.monotonic() > deadline:
                    break
                done.append(proposal)
                begun = time.monotonic()
                try:
                    recipe = self._recipe(proposal)
                    recipes[recipe], taken[recipe] = proposal, time.monotonic() - begun
                except EdgebuildError as error:
                    recipe = Recipe(proposal.name, proposal.format, (), (), proposal.reshaped)
                    failed = Trial(recipe, failure=told(error))
                    self.found.attempts.append(Attempt(proposal, failed))
                step.advance(proposal.name)
        made, failures = make(self.case, list(recipes), self.progress)
        trials = [*measure(self.case, made, self.device, self.progress), *failures]
        self.found.attempts += [Attempt(recipes[trial.recipe], trial) for trial in trials]
        self.found.made += made
        for one in made:
            # Of the others' trainings some were given up, which says nothing about their pace.
            self._note_pace(recipes[one.recipe], taken[one.recipe])
        self._learn()
        self.volumes.append(volume(self.found.trials))
        return tuple(done)

    def _note_pace(self, proposal: Proposal, taken: float) -> None:
        if proposal.steps and taken > FROM_CACHE:
            thought = self._measured.seconds(proposal.steps, proposal.work)
            self.pace.trainings.append((taken, thought))

    def _learn(self) -> None:
        self.found.beliefs = learn([seen for _, seen in self.found.observations()])

    def _recipe(self, proposal: Proposal) -> Recipe:
        """The proposal with a precision for every layer of the network that it makes."""
        program = reshaped_program(self.case, proposal.reshaped, self.progress)
        exporters = exporters_of(self.case.target, [proposal.format])
        exporter, runtime = next(exporters)
        recipe = Recipe(proposal.name, proposal.format, (), (), proposal.reshaped)
        asked = self.wishes.precisions
        # A layer that can have none of these is asked for the first again, and the reason recorded.
        wanted = {
            path: given if given in asked or not asked else asked[0]
            for path, given in proposal.precisions.items()
        }
        return fitted(recipe, wanted, program.sites, exporter, runtime)

    def _stands_still(self) -> bool:
        recent = self.volumes[-STILL_ROUNDS - 1 :]
        return len(recent) > STILL_ROUNDS and recent[-1] < recent[0] * (1 + STILL)


def _limits(case: Case, found: Found) -> Limits:
    """The budget as the planner knows it: power is a latency, at the rate that it is meant at."""
    budget, power = case.budget, case.target.power
    latency = budget.latency_p99 or math.inf
    if budget.power is not None and budget.rate and None not in (power.idle, power.active):
        above = (power.active or 0.0) - (power.idle or 0.0)
        latency = min(latency, budget.power / (above * budget.rate))
    # Weights without zeros are hardly smaller in an archive.
    sizes = [size for size in (budget.storage, budget.download) if size is not None]
    storage = max(min(sizes) - _beside_weights(found), 0.0) if sizes else math.inf
    memory = (budget.memory or math.inf) / _memory_factor(found)
    return Limits(latency, storage, memory)


def _beside_weights(found: Found) -> float:
    """Bytes of a file that are no weights: graph, scales, biases. Of the file with the fewest."""
    rest = []
    for menu, attempt in _unchanged(found):
        with suppress(LookupError):
            weights = appraise(menu, (), attempt.proposal.precisions).storage
            rest.append(attempt.trial.figures["storage"].value - weights)
    return max(min(rest, default=0.0), 0.0)


def _memory_factor(found: Found) -> float:
    """How much more the runtimes take than weights and activations: of the float network."""
    ratios = [1.0]
    for menu, attempt in _unchanged(found):
        if attempt.trial.recipe.is_float:
            planned = whole(menu).memory
            ratios.append(attempt.trial.figures["memory"].value / max(planned, 1))
    return max(ratios)


def _unchanged(found: Found) -> Iterator[tuple[Menu, Attempt]]:
    """What was made of the network as it is, with what there was to choose from."""
    for attempt in found.attempts:
        menu = found.menus.get(attempt.proposal.format)
        if menu is not None and not attempt.trial.failure and not attempt.proposal.reshaped:
            yield menu, attempt
