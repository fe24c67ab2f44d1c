"""What is made runs on the kernels that were asked for, and is made only once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_build
import torch
from torch import nn

from edgebuild import cache as cache_module
from edgebuild import catalog
from edgebuild.cache import Cache
from edgebuild.capture import capture
from edgebuild.search.case import Case
from edgebuild.search.make import Made, make
from edgebuild.search.uniform import uniform_recipes
from edgebuild.vocabulary.artifact import Arithmetic, Artifact, KernelRun
from edgebuild.vocabulary.contracts import Samples
from edgebuild.vocabulary.errors import InvalidTarget, NotExportable
from edgebuild.vocabulary.offer import NETWORK, Choice
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.program import Site
from edgebuild.vocabulary.recipe import Candidate, Recipe
from edgebuild.vocabulary.silence import Silence
from edgebuild.vocabulary.target import Activations
from edgebuild.vocabulary.trial import Trial
from edgebuild.vocabulary.units import Seconds

INTEGER, FLOAT = Arithmetic.INTEGER, Arithmetic.FLOAT


@dataclass
class FakeExporter:
    """Writes an empty file, and counts how often."""

    format: str = "onnx"
    suffix: str = ".onnx"
    runtime: str = "onnxruntime"
    calls: int = 0

    def refusal(self, *_: object) -> str:
        return ""

    def export(self, candidate: Candidate, folder: Path) -> Artifact:
        self.calls += 1
        path = folder / "model.onnx"
        path.touch()
        needed = {"onnxruntime": "1.18.0", "tflite-runtime": "2.14.0"}
        return Artifact(path, self.format, self.runtime, ("in",), ("out",), minimum_runtime=needed)


@dataclass
class FakeRuntime:
    """Says that it ran given kernels."""

    runs: Sequence[KernelRun] = ()
    name: str = "onnxruntime"
    package: str = "onnxruntime"
    calls: int = 0

    def version(self) -> str:
        return "1.0"

    def kernels(self, artifact: Artifact, samples: Samples) -> Iterator[KernelRun]:
        self.calls += 1
        yield from self.runs


@dataclass
class Plugins:
    exporter: FakeExporter
    runtime: FakeRuntime


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Plugins:
    plugins = Plugins(FakeExporter(), FakeRuntime())
    monkeypatch.setattr(catalog, "exporter", lambda name: plugins.exporter)
    monkeypatch.setattr(catalog, "runtime", lambda name: plugins.runtime)
    return plugins


@pytest.fixture
def fresh(case: Case, tmp_path: Path) -> Case:
    """The case with a cache of its own."""
    return replace(case, cache=Cache(tmp_path / "cache"))


def run(kernel: str, arithmetic: Arithmetic, *sites: str) -> KernelRun:
    return KernelRun(kernel, sites, arithmetic, Seconds(1e-6))


def all_static(case: Case, *floating: Site) -> Recipe:
    chosen = tuple(
        (site, Choice("quantize", Precision.FP32 if site in floating else Precision.INT8_STATIC))
        for site in case.program.sites
    )
    declined = tuple((site, "kept in float: a test says so") for site in floating)
    return Recipe("int8-static", "onnx", chosen, declined)


def made_of(case: Case, recipe: Recipe) -> Made:
    (made,), failed = make(case, [recipe], Silence())
    assert failed == []
    return made


def failure_of(case: Case, recipe: Recipe) -> Trial:
    made, (failed,) = make(case, [recipe], Silence())
    assert made == []
    return failed


# ---- on the kernels that were asked for


def test_a_layer_that_ran_in_float_is_named_with_its_kernel(fresh: Case, fakes: Plugins) -> None:
    first, *others = [site.path for site in fresh.program.sites]
    fakes.runtime.runs = [run("SlowConv", FLOAT, first), run("QConv", INTEGER, *others)]
    failed = failure_of(fresh, all_static(fresh))
    assert failed.failure == (
        f"FellBackToFloat: onnx int8-static: asked for integer kernels, but onnxruntime ran "
        f"{first} on SlowConv"
    )


def test_a_layer_that_no_kernel_owns_up_to_is_not_taken_for_integer(
    fresh: Case, fakes: Plugins
) -> None:
    fakes.runtime.runs = [run("Conv", Arithmetic.UNTYPED)]
    failure = failure_of(fresh, all_static(fresh)).failure
    assert "FellBackToFloat" in failure
    assert "kernels that cannot be told apart" in failure


def test_a_layer_of_which_one_kernel_ran_in_float_fell_back(fresh: Case, fakes: Plugins) -> None:
    sites = [site.path for site in fresh.program.sites]
    fakes.runtime.runs = [run("QGate", INTEGER, *sites), run("Gate", FLOAT, sites[0])]
    assert f"ran {sites[0]} on Gate, QGate" in failure_of(fresh, all_static(fresh)).failure


def test_many_layers_are_counted_rather_than_named(fakes: Plugins, tmp_path: Path) -> None:
    network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(8)))
    like = torch.zeros(1, 2)
    workload = small_build.workload_of(network, like, [like], [like + 1])
    case = small_build.case_of(workload, Cache(tmp_path))
    assert "ran 0, 1, 2, 3, 4 and 3 more on" in failure_of(case, all_static(case)).failure


def test_a_layer_that_was_asked_to_be_float_may_be(fresh: Case, fakes: Plugins) -> None:
    spared, *others = fresh.program.sites
    fakes.runtime.runs = [
        run("Conv", FLOAT, spared.path),
        run("QConv", INTEGER, *(site.path for site in others)),
        run("Pool", FLOAT),
    ]
    fallbacks = made_of(fresh, all_static(fresh, spared)).census.fallbacks
    assert [(each.kernel, each.sites, each.reason) for each in fallbacks] == [
        ("Conv", (spared.path,), "kept in float: a test says so"),
        ("Pool", (), "has no weights to quantize"),
    ]


def test_a_float_recipe_has_nothing_to_fall_back_from(fresh: Case, fakes: Plugins) -> None:
    fakes.runtime.runs = [run("Conv", FLOAT, fresh.program.sites[0].path)]
    recipe = all_static(fresh, *fresh.program.sites)
    assert made_of(fresh, recipe).census.fallbacks == ()


def test_one_recipe_that_cannot_be_made_does_not_stop_the_others(
    fresh: Case, fakes: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = all_static(fresh, *fresh.program.sites)
    export = fakes.exporter.export

    def refusing(candidate: Candidate, folder: Path) -> Artifact:
        if candidate.recipe.name == "broken":
            raise NotExportable("onnx: no operator for aten.strange")
        return export(candidate, folder)

    monkeypatch.setattr(fakes.exporter, "export", refusing)
    broken = replace(all_static(fresh), name="broken")
    made, failed = make(fresh, [broken, recipe], Silence())
    assert [one.recipe for one in made] == [recipe]
    assert failed == [Trial(broken, failure="NotExportable: onnx: no operator for aten.strange")]


def test_whatever_a_converter_raises_fails_its_recipe_by_name(fresh: Case, fakes: Plugins) -> None:
    fakes.exporter.export = small_build.failing(KeyError("odd"))  # type: ignore[method-assign]
    made, (failed,) = make(fresh, [all_static(fresh)], Silence())
    assert made == []
    assert failed.failure == "KeyError: 'odd'"


def test_a_network_that_has_lost_what_it_was_for_is_not_exported(
    fresh: Case, fakes: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(outputs: Any, labels: Any) -> float:
        return float(np.mean(np.abs(outputs).max(axis=1) > 0))

    case = replace(fresh, workload=replace(fresh.workload, score=score))
    silent = copy.deepcopy(case.workload.network)
    for weight in silent.parameters():
        nn.init.zeros_(weight)
    changed = capture(silent, case.workload.example)
    monkeypatch.setattr("edgebuild.search.make.reshaped_program", lambda *_: changed)
    recipe = replace(all_static(case), reshaped=((NETWORK, Choice("prune", "all")),))
    failed = failure_of(case, recipe)
    assert failed.failure.startswith("not exported: its network has lost 100% of the score")
    assert failed.figures["accuracy_drop"].value == 1.0
    assert fakes.exporter.calls == 0


def test_a_full_disk_is_no_recipes_failure(fresh: Case, fakes: Plugins) -> None:
    full = OSError(28, "No space left on device")
    fakes.exporter.export = small_build.failing(full)  # type: ignore[method-assign]
    with pytest.raises(OSError, match="No space left"):
        make(fresh, [all_static(fresh)], Silence())


# ---- by releases that compute it rightly


def with_release(case: Case, version: str) -> Case:
    runtimes = (replace(runtime, version=version) for runtime in case.target.runtimes)
    return replace(case, target=replace(case.target, runtimes=tuple(runtimes)))


@pytest.mark.parametrize("version", ["1.18.0", "1.18.1", "1.100", "tflite-runtime 2.14.0"])
def test_a_target_with_a_release_that_is_new_enough_gets_it(
    version: str, fresh: Case, fakes: Plugins
) -> None:
    recipe = all_static(fresh, *fresh.program.sites)
    assert made_of(with_release(fresh, version), recipe)


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("1.9.0", "the target has onnxruntime 1.9.0, which is not known to compute this rightly"),
        ("tflite-runtime 2.13.0", "the target has tflite-runtime 2.13.0, which is not known"),
        ("another 3.0", "the target has another 3.0; this needs onnxruntime 1.18.0 or tflite-"),
    ],
)
def test_a_target_with_an_older_or_another_release_is_refused_it(
    version: str, reason: str, fresh: Case, fakes: Plugins
) -> None:
    recipe = all_static(fresh, *fresh.program.sites)
    failed = failure_of(with_release(fresh, version), recipe)
    assert failed.failure.startswith(f"PrecisionRefused: {reason}")


def test_a_version_that_is_no_release_is_the_profiles_fault(fresh: Case, fakes: Plugins) -> None:
    with pytest.raises(InvalidTarget, match=r"runtime\.onnxruntime\.version: 'newest'"):
        make(with_release(fresh, "newest"), [all_static(fresh)], Silence())


# ---- only once


def test_the_second_time_nothing_is_made(fresh: Case, fakes: Plugins) -> None:
    recipe = all_static(fresh, *fresh.program.sites)
    first = made_of(fresh, recipe)
    again = made_of(fresh, replace(recipe, name="under another name"))
    assert (again.artifact, again.census) == (first.artifact, first.census)
    assert first.artifact.path.exists()
    assert (fakes.exporter.calls, fakes.runtime.calls) == (1, 1)


def test_what_failed_is_not_kept(fresh: Case, fakes: Plugins) -> None:
    export = fakes.exporter.export
    fakes.exporter.export = small_build.failing(NotExportable("once"))  # type: ignore[method-assign]
    recipe = all_static(fresh, *fresh.program.sites)
    assert failure_of(fresh, recipe)
    fakes.exporter.export = export  # type: ignore[method-assign]
    assert made_of(fresh, recipe)


def another_weight(case: Case) -> Case:
    workload = small_build.workload()
    with torch.no_grad():
        workload.network[0].weight[0, 0, 0, 0] += 1e-6  # type: ignore[index, union-attr]
    return small_build.case_of(workload, case.cache)


def other_calibration_data(case: Case) -> Case:
    return replace(case, calibration=case.validation)


def other_activations(case: Case) -> Case:
    def turned(activations: Activations) -> Activations:
        return next(each for each in Activations if each is not activations)

    runtimes = (replace(r, activations=turned(r.activations)) for r in case.target.runtimes)
    return replace(case, target=replace(case.target, runtimes=tuple(runtimes)))


@pytest.mark.parametrize("change", [another_weight, other_calibration_data, other_activations])
def test_something_else_is_made_anew(change: object, fresh: Case, fakes: Plugins) -> None:
    assert callable(change)
    recipe = all_static(fresh, *fresh.program.sites)
    first = made_of(fresh, recipe)
    second = made_of(change(fresh), recipe)
    assert second.artifact.path != first.artifact.path
    assert fakes.exporter.calls == 2


def test_another_toolchain_makes_anew(
    fresh: Case, fakes: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = all_static(fresh, *fresh.program.sites)
    first = made_of(fresh, recipe)
    monkeypatch.setattr(cache_module, "toolchain", lambda: "another")
    assert made_of(fresh, recipe).artifact.path != first.artifact.path
    assert (fakes.exporter.calls, fakes.runtime.calls) == (2, 2)


# ---- with the real exporter and runtime


def test_a_small_network_is_made_of_integers_and_the_second_time_is_found(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = uniform_recipes(case, {}, ["onnx"], small_build.PRECISIONS)
    made, failed = make(case, recipes, Silence())
    assert failed == []
    shares = {one.recipe.name: one.census.integer_share_of_kernels for one in made}
    assert shares["fp32"] == 0.0
    assert shares["int8-static"] > 0.5
    assert shares["int8-static, 1 in float"] < shares["int8-static"]
    fail = small_build.failing(AssertionError("exported again"))
    monkeypatch.setattr(type(catalog.exporter("onnx")), "export", fail)
    monkeypatch.setattr(type(catalog.runtime("onnxruntime")), "kernels", fail)
    assert make(case, recipes, Silence()) == (made, failed)
