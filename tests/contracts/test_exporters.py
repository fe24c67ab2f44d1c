"""Every exporter keeps its contract on every network of the zoo, in every precision."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Subject, Workshop, export, recipe_of, uniform
from torch.utils import _pytree as pytree
from zoo import ZOO

from edgebuild import catalog
from edgebuild.vocabulary.artifact import Arithmetic, Artifact, KernelRun
from edgebuild.vocabulary.errors import PrecisionRefused
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.program import Site
from edgebuild.vocabulary.recipe import Recipe

FORMATS = catalog.names("exporters")
# The largest difference over the largest output; the worst of the zoo are 5e-6 and 6e-3.
FLOAT_LIMITS = {Precision.FP32: 2e-5, Precision.FP16: 1e-2}
# Signal over noise in decibels; the zoo's worst is 14, a transformer with static activations.
INTEGER_LIMIT = 12.0
# What names and nodes, and the scales and zero points of weights and biases, may add to the file.
OVERHEAD_OF_A_LAYER = 2048
OVERHEAD_OF_A_CHANNEL = 32


@dataclass(frozen=True)
class Line:
    """One network in one format, from the float export on."""

    name: str
    format: str
    workshop: Workshop

    @property
    def subject(self) -> Subject:
        return self.workshop.subject(self.name)

    def recipe(self, precision: Precision) -> Recipe:
        return uniform(self.subject.program, self.format, precision)

    def artifact(self, precision: Precision) -> Artifact:
        return self.workshop.artifact(self.name, self.format, precision)

    def precisions(self) -> Iterator[Precision]:
        """Those that at least one layer can have."""
        for precision in Precision:
            if precision in self.recipe(precision).precisions.values():
                yield precision

    def outputs(self, precision: Precision) -> Sequence[np.ndarray]:
        return self.workshop.outputs_of(self.name, self.artifact(precision))

    def kernels(self, artifact: Artifact) -> Sequence[KernelRun]:
        return self.workshop.kernels_of(self.name, artifact)


@pytest.fixture(
    scope="module",
    params=[(name, format_) for name in ZOO for format_ in FORMATS],
    ids="-".join,
)
def line(request: pytest.FixtureRequest, workshop: Workshop) -> Line:
    return Line(*request.param, workshop)


def test_every_precision_computes_what_the_network_does(line: Line) -> None:
    for precision in line.precisions():
        actual = line.outputs(precision)
        assert [array.shape for array in actual] == [e.shape for e in line.subject.expected]
        for wanted, got in zip(line.subject.expected, actual, strict=True):
            assert np.isfinite(got).all(), precision
            if precision in FLOAT_LIMITS:
                assert _relative_error(wanted, got) <= FLOAT_LIMITS[precision], precision
            elif precision is not Precision.INT4_WEIGHTS and not precision.is_storage_only:
                # Three significant bits, four or one without training are too few for random
                # weights: they only have to run.
                assert _decibels(wanted, got) >= INTEGER_LIMIT, precision


def _relative_error(wanted: np.ndarray, got: np.ndarray) -> float:
    return float(np.abs(wanted - got).max() / np.abs(wanted).max())


def _decibels(wanted: np.ndarray, got: np.ndarray) -> float:
    noise = np.linalg.norm(wanted - got) + np.finfo(np.float32).tiny
    return float(20 * np.log10(np.linalg.norm(wanted) / noise))


def test_outputs_take_the_structure_of_the_networks_own(line: Line) -> None:
    first = next(line.subject.held_out.rows())
    with torch.no_grad():
        expected = line.subject.specimen.network(*map(torch.tensor, first))
    restored = line.subject.program.restore(a[:1] for a in line.outputs(Precision.FP32))
    assert pytree.tree_structure(restored) == pytree.tree_structure(expected)
    for got, wanted in zip(pytree.tree_leaves(restored), pytree.tree_leaves(expected), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)


def test_every_integer_layer_runs_on_an_integer_kernel_and_no_other(line: Line) -> None:
    for precision in line.precisions():
        wanted = {s.path for s, p in line.recipe(precision).precisions.items() if p.is_integer}
        kernels = line.kernels(line.artifact(precision))
        assert _sites(kernels, Arithmetic.INTEGER) == wanted, precision
        assert not wanted & _sites(kernels, Arithmetic.FLOAT), precision


def test_a_float_artifact_has_no_integer_kernel(line: Line) -> None:
    for precision in FLOAT_LIMITS:
        kernels = line.kernels(line.artifact(precision))
        assert not [run.kernel for run in kernels if run.arithmetic is Arithmetic.INTEGER]


def test_one_layer_can_stay_float_among_integer_ones(line: Line) -> None:
    static = line.recipe(Precision.INT8_STATIC).precisions
    integer = [site for site, precision in static.items() if precision.is_integer]
    if len(integer) < 2:
        pytest.skip("the format makes fewer than two layers of this network static")
    floating = integer[len(integer) // 2]
    artifact = line.workshop.artifact(line.name, line.format, Precision.INT8_STATIC, floating)
    kernels = line.kernels(artifact)
    assert floating.path in _sites(kernels, Arithmetic.FLOAT)
    assert _sites(kernels, Arithmetic.INTEGER) == {s.path for s in integer} - {floating.path}


def _sites(kernels: Sequence[KernelRun], arithmetic: Arithmetic) -> set[str]:
    return {site for run in kernels if run.arithmetic is arithmetic for site in run.sites}


def test_fewer_bits_make_a_smaller_file(line: Line) -> None:
    float_size = line.artifact(Precision.FP32).size
    for precision in set(line.precisions()) - {Precision.FP32}:
        narrow = [s for s, p in line.recipe(precision).precisions.items() if p is precision]
        weights = [tensor for site in narrow for tensor in _weights(line.subject, site)]
        saved = sum(tensor.numel() for tensor in weights) * (32 - precision.weight_bits) // 8
        channels = sum(max(tensor.shape[:2]) for tensor in weights)
        overhead = OVERHEAD_OF_A_LAYER * len(narrow) + OVERHEAD_OF_A_CHANNEL * channels
        assert line.artifact(precision).size <= float_size - saved + overhead, precision


def _weights(subject: Subject, site: Site) -> list[torch.Tensor]:
    """A layer's matrices or kernels; biases stay in 32 bits."""
    tensors = subject.program.exported.state_dict.items()
    return [t for name, t in tensors if name.startswith(f"{site.path}.") and t.ndim > 1]


def test_the_same_recipe_gives_the_same_bytes_without_a_trace_of_this_machine(line: Line) -> None:
    for precision in line.precisions():
        first = line.artifact(precision)
        again = line.workshop.new_folder(f"{first.path.parent.name}-again")
        second = line.workshop.export(line.name, line.recipe(precision), again)
        content = second.path.read_bytes()
        assert first.path.read_bytes() == content, precision
        for place in (Path(__file__).parents[2], sys.prefix, Path.home(), tempfile.gettempdir()):
            assert str(place) == "/" or str(place).encode() not in content, place


def test_an_artifact_is_one_file_that_says_what_it_needs(line: Line) -> None:
    for precision in line.precisions():
        artifact = line.artifact(precision)
        exporter = catalog.exporter(line.format)
        made = {path.name for path in artifact.path.parent.iterdir()}
        assert made - {"outputs", "manifest.json"} == {artifact.path.name}
        assert artifact.path.suffix == exporter.suffix
        assert artifact.minimum_runtime
        assert len(artifact.inputs) == len(line.subject.specimen.example)
        # A look-up of constant places becomes a constant.
        sites = line.subject.program.sites
        weighted = {site.path for site in sites if site.kind is not LayerKind.EMBEDDING}
        assert weighted <= set(artifact.weights.values()) <= {site.path for site in sites}


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", ["two-inputs", "gru"])
def test_a_conversion_gives_the_same_bytes_in_an_empty_cache(
    workshop: Workshop,
    name: str,
    format_: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = workshop.artifact(name, format_, Precision.INT8_STATIC)
    monkeypatch.setenv("EDGEBUILD_CACHE", str(tmp_path / "cache"))
    recipe = uniform(workshop.subject(name).program, format_, Precision.INT8_STATIC)
    second = workshop.export(name, recipe, tmp_path)
    assert first.path.read_bytes() == second.path.read_bytes()


REFUSED = [
    (format_, kind, precision)
    for format_ in FORMATS
    for kind in LayerKind
    for precision in Precision
    if catalog.exporter(format_).refusal(kind, precision)
]


@pytest.mark.parametrize(("format_", "kind", "precision"), REFUSED)
def test_what_has_no_kernel_is_refused_with_the_layer_and_the_reason(
    workshop: Workshop, format_: str, kind: LayerKind, precision: Precision, tmp_path: Path
) -> None:
    names = {
        LayerKind.CONVOLUTION: "residual-cnn",
        LayerKind.DEPTHWISE: "mobilenet-v2",
        LayerKind.TRANSPOSED: "u-net",
        LayerKind.RECURRENT: "gru",
        LayerKind.EMBEDDING: "bert",
        LayerKind.LINEAR: "vit",
    }
    subject = workshop.subject(names[kind])
    site = next(site for site in subject.program.sites if site.kind is kind)
    recipe = recipe_of(format_, {site: precision})
    with pytest.raises(PrecisionRefused) as refused:
        export(subject, recipe, tmp_path)
    reason = catalog.exporter(format_).refusal(kind, precision)
    assert str(refused.value) == f"{format_}: {site.path} to {precision}: {reason}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("kind", LayerKind)
def test_every_kind_of_layer_can_stay_float(format_: str, kind: LayerKind) -> None:
    assert catalog.exporter(format_).refusal(kind, Precision.FP32) == ""
