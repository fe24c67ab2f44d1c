"""Layers are offered what has a kernel on the target; mere storage only where storage binds."""

from __future__ import annotations

import pytest

from edgebuild import catalog
from edgebuild.inputs.target_file import load_target
from edgebuild.methods.quantize import Quantize
from edgebuild.vocabulary.offer import Choice
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.program import Site

RUNTIME = load_target("host").runtimes[0]
STORED = [precision for precision in Precision if precision.is_storage_only]
ONE_OF_EACH = [Site(str(kind), kind) for kind in LayerKind]


def options(method: Quantize, site: Site) -> list[str]:
    return [choice.option for _, choice in method.choices([site], RUNTIME)]


@pytest.mark.parametrize("site", ONE_OF_EACH, ids=str)
def test_a_layer_is_offered_what_the_target_lists_in_its_order(site: Site) -> None:
    assert options(Quantize(), site) == list(RUNTIME.kernels[site.kind])


@pytest.mark.parametrize("site", ONE_OF_EACH, ids=str)
def test_storage_without_a_kernel_comes_last_and_only_where_it_binds(site: Site) -> None:
    offered = options(Quantize(storage_binds=True), site)
    assert offered == [*RUNTIME.kernels[site.kind], *STORED]


@pytest.mark.parametrize("method", [Quantize(), Quantize(storage_binds=True)], ids=str)
@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("site", ONE_OF_EACH, ids=str)
def test_what_is_not_offered_is_refused_and_the_other_way_round(
    method: Quantize, precision: Precision, site: Site
) -> None:
    refused = method.refusal(site, Choice("quantize", precision), RUNTIME)
    assert bool(refused) == (precision not in options(method, site))


@pytest.mark.parametrize("precision", STORED)
def test_mere_storage_is_refused_as_what_it_is(precision: Precision) -> None:
    reason = Quantize().refusal(ONE_OF_EACH[0], Choice("quantize", precision), RUNTIME)
    assert reason == "no kernel on this runtime: storage only"


def test_a_precision_that_the_target_does_not_list_is_refused_by_name() -> None:
    choice = Choice("quantize", Precision.INT16_ACTIVATIONS)
    reason = Quantize().refusal(Site("fc", LayerKind.LINEAR), choice, RUNTIME)
    assert reason == f"the target has no fast int16-activations kernel for linear in {RUNTIME.name}"


def test_only_what_runs_on_integer_kernels_is_called_integer() -> None:
    integer = {precision for precision in Precision if precision.is_integer}
    assert integer == {Precision.INT8_STATIC, Precision.INT8_DYNAMIC, Precision.INT4_WEIGHTS}


@pytest.mark.parametrize("precision", STORED)
@pytest.mark.parametrize("kind", LayerKind)
def test_onnx_stores_every_kind_of_layer_and_tflite_says_why_it_does_not(
    precision: Precision, kind: LayerKind
) -> None:
    assert catalog.exporter("onnx").refusal(kind, precision) == ""
    assert "LiteRT does not widen" in catalog.exporter("tflite").refusal(kind, precision)
