"""The loop tries, learns and stops; cut off anywhere, it goes on and comes to the same."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import small_build
import small_search
import torch
from torch import nn

from edgebuild import cache as cache_module
from edgebuild import catalog
from edgebuild.cache import Cache
from edgebuild.inputs.target_file import load_target
from edgebuild.search import loop, measure, propose, reshape, training
from edgebuild.search.case import Case
from edgebuild.search.explain import explain
from edgebuild.search.found import Found
from edgebuild.search.judge import choose
from edgebuild.search.loop import Wishes, search
from edgebuild.search.plan import appraise
from edgebuild.search.proposal import Attempt, Proposal
from edgebuild.search.survey import Survey
from edgebuild.vocabulary.measurement import Evidence, Figure
from edgebuild.vocabulary.offer import NETWORK, Choice, Offer, Part, PartKind
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.silence import Silence
from edgebuild.vocabulary.target import Budget
from edgebuild.vocabulary.verdict import Status
from edgebuild.vocabulary.workload import Workload

METHODS = ("prune", "distill", "quantize")
PRUNED = (Part("0", PartKind.CHANNELS), Choice("prune", "keep 4 of 8"))
TRAINED = (NETWORK, Choice("distill", "3 steps, seed 0"))


@pytest.fixture(autouse=True)
def _short_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SEARCHING", replace(measure.SEARCHING, seconds=0.0, count=8))
    monkeypatch.setattr(loop, "STILL_ROUNDS", 1)
    monkeypatch.setattr(training, "STEPS", (2, 4))
    monkeypatch.setattr(propose, "AROUND", (0.3,))
    monkeypatch.setattr(propose, "BEYOND", (0.3,))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def case_of(cache: Cache, workload: Workload | None = None) -> Case:
    target = load_target("host")
    runtimes = [replace(runtime, channel_multiple=4) for runtime in target.runtimes]
    return small_build.case_of(
        workload or small_build.workload(), cache, replace(target, runtimes=tuple(runtimes))
    )


def searched(case: Case, seconds: float | None = 45.0, methods: tuple[str, ...] = METHODS) -> Found:
    precisions = (Precision.FP32, Precision.INT8_STATIC)
    wishes = Wishes(("onnx",), precisions, methods, seconds)
    with catalog.device("local") as device:
        return search(case, wishes, device, Silence())


def names(found: Found) -> list[str]:
    return [attempt.proposal.name for attempt in found.attempts]


def test_networks_are_pruned_trained_and_quantized_and_the_same_search_repeats_itself(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = searched(case_of(cache))
    tried = " ".join(names(first))
    assert "prune" in tried
    assert "distill" in tried
    assert "int8-static" in tried
    assert any(trial.recipe.reshaped and not trial.failure for trial in first.trials)

    # Nothing is decided, trained or exported a second time.
    monkeypatch.setattr(loop.Rounds, "propose", small_build.failing(AssertionError("decides")))
    trains = small_build.failing(AssertionError("trains"))
    monkeypatch.setattr("edgebuild.methods.distill.Distill.apply", trains)
    exports = small_build.failing(AssertionError("exports"))
    monkeypatch.setattr("edgebuild.exporters.onnx.Onnx.export", exports)
    again = searched(case_of(cache))
    assert names(again) == names(first)
    assert [t.score for t in again.trials] == [t.score for t in first.trials]


def test_a_search_that_was_cut_off_goes_on(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = names(searched(case_of(Cache(cache.root / "whole"))))
    with monkeypatch.context() as patch:
        real, calls = loop.make, []

        def cut_off(*args: object) -> object:
            calls.append(args)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(*args)  # type: ignore[arg-type]

        patch.setattr(loop, "make", cut_off)
        with pytest.raises(KeyboardInterrupt):
            searched(case_of(cache))
    # What was decided before is not decided again, but tried; and the networks are there.
    patched = small_build.failing(AssertionError("surveys"))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "opening", patched)
        found = searched(case_of(cache))
    assert len(found.attempts) > 2
    assert names(found)[:2] == whole[:2]


def test_when_the_time_is_up_the_best_so_far_is_there(cache: Cache) -> None:
    found = searched(case_of(cache), seconds=0.0)
    assert found.trials
    assert all(not trial.recipe.reshaped for trial in found.trials)
    assert found.ran_out_of_time
    # The same search, repeated from its journal, ended as it did.
    assert searched(case_of(cache), seconds=0.0).ran_out_of_time


def test_what_is_tried_first_takes_of_the_time_and_is_finished_all_the_same(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def propose(self: loop.Rounds, deadline: float) -> Iterator[Proposal]:
        given.append(deadline)
        return iter(())

    monkeypatch.setattr(loop.Rounds, "propose", propose)
    case = case_of(cache)
    before = time.monotonic()
    assert searched(case, seconds=1000.0).trials
    assert given[0] == pytest.approx(before + 1000, abs=0.5)
    wishes = Wishes(("onnx",), (Precision.FP32,), METHODS, 900.0)
    with catalog.device("local") as device:
        search(case, wishes, device, Silence(), begun=before - 600)
    assert given[1] == pytest.approx(before + 300, abs=0.5)


def test_time_that_is_up_in_the_middle_of_a_round_ran_out(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposal = Proposal("int8-static", "onnx", precisions={"0": Precision.INT8_STATIC})
    monkeypatch.setattr(loop.Rounds, "propose", lambda *_: iter([proposal]))
    assert searched(case_of(cache), seconds=0.0).ran_out_of_time


def test_without_a_time_the_search_ends_when_the_budget_is_kept(cache: Cache) -> None:
    found = searched(case_of(cache), seconds=None)
    assert all(not trial.recipe.reshaped for trial in found.trials)
    assert not found.ran_out_of_time


def test_where_nothing_keeps_the_budget_the_nearest_is_looked_for(cache: Cache) -> None:
    case = replace(case_of(cache), budget=Budget.parse(storage="1 kB"))
    found = searched(case)
    whole = [t.figures["storage"].value for t in found.trials if not t.recipe.reshaped]
    best = choose(found.trials)
    assert best is not None
    assert best.verdict.status is Status.BREACHED
    assert best.figures["storage"].value < min(whole)


def test_a_precision_that_was_asked_for_alone_is_that_of_all_layers_that_can_have_it(
    cache: Cache,
) -> None:
    class Embedded(nn.Module):
        """Words, which no format looks up in integers that pass on, and two layers."""

        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(16, 32)
            self.body = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 4))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.body(self.words(tokens).mean(1))
            return found

    tokens = [torch.randint(16, (1, 8), generator=torch.manual_seed(n)) for n in range(24)]
    given = small_build.workload_of(Embedded(), tokens[0], tokens[:8], tokens[8:16])
    given = replace(given, test=[(one, None) for one in tokens[16:]])
    wishes = Wishes(("onnx",), (Precision.INT8_STATIC,), ("prune",))
    with catalog.device("local") as device:
        rounds = loop.Rounds(small_build.case_of(given, cache), wishes, Found(), device, Silence())
        loop.try_uniform(rounds.case, wishes, rounds.found, device, Silence())
        rounds.prepare()
    menu = rounds.found.menus["onnx"]
    only = {path: next(iter(offered)) for path, offered in menu.precisions.items()}
    assert all(len(offered) == 1 for offered in menu.precisions.values())
    planned = Proposal("planned", "onnx", (), only)
    for recipe in (rounds.found.trials[0].recipe, rounds._recipe(planned)):
        got = {site.path: precision for site, precision in recipe.precisions.items()}
        assert got == only
        assert {path for path in got if got[path] != Precision.INT8_STATIC} == {"words"}
        assert [(site.path, bool(reason)) for site, reason in recipe.declined] == [("words", True)]
    choices = {record.path: record.choice for record in explain(menu, planned)}
    assert choices == only


def test_a_network_without_layers_is_searched_and_nothing_is_found(cache: Cache) -> None:
    case = case_of(cache, replace(small_build.workload(), network=nn.Softmax(1).eval()))
    found = searched(replace(case, budget=Budget.parse(storage="10 B")))
    assert {trial.recipe.name for trial in found.trials} == {"fp32"}
    assert found.survey is not None
    assert set(found.survey.dropped) >= {"prune", "distill"}
    assert not found.ran_out_of_time


def test_zeros_are_tried_where_an_archive_would_be_too_large(cache: Cache) -> None:
    case = replace(case_of(cache), budget=Budget.parse(download="1 kB"))
    found = searched(case, methods=("sparsify",))
    sizes: dict[bool, list[float]] = {True: [], False: []}
    for name, trial in zip(names(found), found.trials, strict=True):
        if not trial.failure:
            sizes["sparsify" in name].append(trial.figures["download"].value)
    # Which precision is sparsified follows from latencies; each is smaller than some whole one.
    assert sizes[True]
    assert min(sizes[True]) < max(sizes[False])
    assert found.survey is not None
    assert "sparsify" not in found.survey.dropped


# ---- nothing stale is ever met


def changed_weight(workload: Workload) -> Workload:
    with torch.no_grad():
        next(workload.network.parameters()).view(-1)[0] += 1e-3
    return workload


def changed_data(workload: Workload) -> Workload:
    return replace(workload, calibration=small_build.images(16, seed=7))


def changed_validation(workload: Workload) -> Workload:
    return replace(workload, validation=small_build.images(24, seed=8))


def changed_score(workload: Workload) -> Workload:
    return replace(workload, score=lambda outputs, labels: float(outputs.max()))


@pytest.mark.parametrize(
    "change", [changed_weight, changed_data, changed_validation, changed_score]
)
def test_a_change_of_the_workload_trains_anew(
    change: Callable[[Workload], Workload], cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(case_of(cache))
    monkeypatch.setattr("edgebuild.methods.distill.train", small_build.failing(RuntimeError("new")))
    trained(case_of(cache))
    with pytest.raises(RuntimeError, match="new"):
        trained(case_of(cache, change(small_build.workload())))


def test_another_option_trains_anew(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(cache)
    trained(case)
    monkeypatch.setattr("edgebuild.methods.distill.train", small_build.failing(RuntimeError("new")))
    other = (NETWORK, Choice("distill", "3 steps, seed 1"))
    with pytest.raises(RuntimeError, match="new"):
        reshape.reshaped_network(case, [PRUNED, other], Silence())


def test_another_release_of_a_library_trains_anew(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(cache)
    trained(case)
    monkeypatch.setattr("edgebuild.methods.distill.train", small_build.failing(RuntimeError("new")))
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "9" if name == "torch" else real(name)
    )
    cache_module.toolchain.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="new"):
            trained(case)
    finally:
        cache_module.toolchain.cache_clear()


def trained(case: Case) -> None:
    reshape.reshaped_network(case, [PRUNED, TRAINED], Silence())


def test_changes_begin_with_statistics_of_the_calibration_split(cache: Cache) -> None:
    torch.manual_seed(0)
    given = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 6))
    image = torch.randn(1, 1, 8, 8)
    images = list(torch.randn(8, 1, 1, 8, 8))
    case = small_build.case_of(small_build.workload_of(given, image, images, images), cache)
    begun = reshape.reshaped_network(case, [], Silence())
    assert torch.allclose(begun(image), given(image), atol=1e-5)
    seen = given[0](torch.cat(images))
    assert torch.allclose(begun[1].running_mean, seen.mean((0, 2, 3)), atol=1e-5)  # type: ignore[index]
    assert torch.equal(given[1].running_mean, torch.zeros(8))  # type: ignore[arg-type]


# ---- one network under two names


def test_pruning_that_comes_to_a_students_widths_is_the_same_network() -> None:
    pruned = small_search.narrowed("layers.0", "layers.1", 16, 0.1)
    student = replace(pruned.offer, part=NETWORK, choice=Choice("student", "width 25 %"))
    survey = Survey({}, (pruned,), (student,), (), (), {}, {})
    found = Found(survey=survey, menus={"onnx": small_search.menu(pruned)})

    def network(offer: Offer, training: Choice) -> object:
        shape = ((offer.part, offer.choice), (NETWORK, training))
        return found.network(Proposal("any", "onnx", shape))

    short, long = Choice("distill", "50 steps, seed 0"), Choice("distill", "100 steps, seed 0")
    assert network(pruned.offer, short) == network(student, short)
    assert network(pruned.offer, short) != network(student, long)
    other = small_search.narrowed("layers.0", "layers.1", 32, 0.1).offer
    assert network(pruned.offer, short) != network(other, short)


def test_what_a_file_holds_beside_its_weights_is_the_least_of_what_was_seen() -> None:
    small, found = small_search.menu(), Found()
    found.menus = {"onnx": small}
    stored = {
        precision: appraise(small, (), dict.fromkeys(small.layers, precision)).storage
        for precision in (Precision.FP32, Precision.INT8_DYNAMIC)
    }
    for precision, beside in zip(stored, (9_000, 5_000), strict=True):
        trial = small_search.tried(1.0, 1e-3)
        size = Figure(stored[precision] + beside, Evidence.MEASURED, "the file")
        sized = replace(trial, figures={**trial.figures, "storage": size})
        proposal = Proposal("a", "onnx", (), dict.fromkeys(small.layers, precision))
        found.attempts.append(Attempt(proposal, sized))
    # What is not on the menu tells nothing.
    unknown = dict.fromkeys(small.layers, Precision.INT4_WEIGHTS)
    found.attempts.append(Attempt(Proposal("b", "onnx", (), unknown), found.attempts[0].trial))
    assert loop._beside_weights(found) == 5_000
    assert loop._beside_weights(Found()) == 0
