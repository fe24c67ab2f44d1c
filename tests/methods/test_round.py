"""Better rounding than to the nearest brings artifacts nearer to the network that they are of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from conftest import Subject, Workshop, export, outputs_of, uniform
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor, nn
from zoo import ZOO, Specimen, samples

from edgebuild.capture import capture, operator_name
from edgebuild.inputs.target_file import load_target
from edgebuild.methods._batch_norms import fold_batch_norms
from edgebuild.methods._round_adaround import adaround
from edgebuild.methods._round_clip import clipped
from edgebuild.methods._round_equalize import equalizable
from edgebuild.methods._round_gptq import gptq
from edgebuild.methods._round_grid import GRIDS, Steps
from edgebuild.methods._round_layers import layers_of
from edgebuild.methods._round_seen import Seen, seen_by
from edgebuild.methods._round_smooth import smoothable
from edgebuild.methods.round import Round
from edgebuild.vocabulary.errors import MethodFailed
from edgebuild.vocabulary.offer import NETWORK, Choice, Part, PartKind
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.workload import Workload

ROUND = Round(samples=16, iterations=80)
HOST = {runtime.name: runtime for runtime in load_target("host").runtimes}
ROUNDED = (
    "bias-correction",
    "clip",
    "adaround",
    "gptq",
    "adaround, bias-correction int4",
    "clip, gptq int4",
    "clip, adaround, bias-correction int4-linear",
    "equalize, smooth, gptq, bias-correction int4-linear-blocks",
    "adaround int4-convolutions",
)


def workload_of(specimen: Specimen) -> Workload:
    drawn = samples(specimen, 16, seed=0)
    return Workload(specimen.name, specimen.network, specimen.example, drawn, drawn, drawn)


def rounded(specimen: Specimen, option: str) -> nn.Module:
    chosen = {NETWORK: Choice("round", option)}
    return ROUND.apply(specimen.network, chosen, workload_of(specimen))


def options(specimen: Specimen, runtime: str) -> list[str]:
    return [offer.choice.option for offer in ROUND.offers(workload_of(specimen), HOST[runtime])]


def outputs(network: nn.Module, specimen: Specimen) -> list[Tensor]:
    with torch.no_grad():
        rows = [network(*inputs) for inputs, _ in samples(specimen, 4, seed=1)]
    return [leaf for row in rows for leaf in torch.utils._pytree.tree_leaves(row)]


def assert_equal_function(one: nn.Module, other: nn.Module, specimen: Specimen) -> None:
    for wanted, got in zip(outputs(one, specimen), outputs(other, specimen), strict=True):
        assert (wanted - got).abs().max() <= 1e-4 * wanted.abs().max()


def decibels(wanted: np.ndarray, got: np.ndarray) -> float:
    return float(20 * np.log10(np.linalg.norm(wanted) / np.linalg.norm(wanted - got)))


# ---- what leaves the function as it is


@pytest.mark.parametrize("name", ZOO)
def test_folding_equalizing_and_smoothing_keep_the_function(name: str) -> None:
    specimen = ZOO[name]()
    before = copy.deepcopy(specimen.network.state_dict())
    changed = rounded(specimen, "equalize, smooth")
    assert_equal_function(specimen.network, changed, specimen)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in changed.modules())
    after = specimen.network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert list(before) == list(after)


class Branching(nn.Module):
    """Called in another order than it is written in, with a branch that fx cannot trace."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last_norm = nn.BatchNorm2d(width)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, width, 3, bias=False)
        self.first = nn.Conv2d(2, width, 3)
        for norm in (self.norm, self.last_norm):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)
            norm.running_mean = torch.randn(width)
            norm.running_var = torch.empty(width).uniform_(0.5, 2)

    def forward(self, image: Tensor) -> Tensor:
        features = self.norm(self.first(image))
        if features.shape[2] > 2:
            features = torch.relu(features)
        return self.last_norm(self.last(features))  # type: ignore[no-any-return]


IMAGE = (torch.zeros(1, 2, 12, 12),)


def test_batch_norms_are_found_in_the_graph_and_not_in_the_order_of_modules() -> None:
    specimen = Specimen("branching", Branching().eval(), IMAGE)
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(specimen.network)
    folded = copy.deepcopy(specimen.network)
    program = fold_batch_norms(folded, specimen.example)
    assert "batch_norm" not in {operator_name(node) for node in program.exported.graph.nodes}
    assert_equal_function(specimen.network, folded, specimen)


class Shared(nn.Module):
    """A BatchNorm that is called twice, and one whose layer is read by another too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 2, 1)
        self.second = nn.Conv2d(2, 2, 1)
        self.twice = nn.BatchNorm2d(2)
        self.once = nn.BatchNorm2d(2)
        self.once.running_mean = torch.randn(2)
        self.twice.running_mean = torch.randn(2)

    def forward(self, image: Tensor) -> Tensor:
        read_twice = self.second(self.twice(self.first(self.twice(image))))
        return self.once(read_twice) + read_twice  # type: ignore[no-any-return]


def test_a_batch_norm_that_cannot_be_folded_stays() -> None:
    specimen = Specimen("shared", Shared().eval(), IMAGE)
    folded = copy.deepcopy(specimen.network)
    fold_batch_norms(folded, specimen.example)
    assert [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    assert_equal_function(specimen.network, folded, specimen)


def scaled(width: int = 16, spread: float = 1.5) -> Specimen:
    """Separable convolutions whose channels have very different ranges, in vain: they cancel."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(2, width, 3)]
    for _ in range(2):
        layers += [nn.Conv2d(width, width, 3, groups=width), nn.Conv2d(width, width, 1)]
    network = nn.Sequential(*(one for layer in layers for one in (layer, nn.ReLU())))
    network.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 8)])
    weighted = [module for module in network if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer in weighted:
        nn.init.kaiming_normal_(layer.weight)
    for first, second in pairwise(weighted):
        factors = 10 ** torch.empty(width).uniform_(-spread / 2, spread / 2)
        is_depthwise = second.weight.shape[1] == 1
        with torch.no_grad():
            first.weight.mul_(factors.reshape(-1, *(1,) * (first.weight.ndim - 1)))
            first.bias.mul_(factors)  # type: ignore[union-attr]
            axes = (-1, 1, 1, 1) if is_depthwise else (1, -1, *(1,) * (second.weight.ndim - 2))
            second.weight.div_(factors.reshape(axes))
    return Specimen("scaled", network.eval(), IMAGE)


def test_equalized_layers_have_equal_ranges_on_both_sides_of_every_channel() -> None:
    changed = rounded(scaled(), "equalize")
    first, second = changed[0], changed[2]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    ranges = first.weight.abs().amax(dim=(1, 2, 3)), second.weight.abs().amax(dim=(1, 2, 3))
    torch.testing.assert_close(ranges[0], ranges[1], rtol=2e-2, atol=0)


def pairs(*between: nn.Module) -> int:
    layers = nn.Sequential(nn.Conv2d(2, 4, 3), *between, nn.Conv2d(4, 4, 3)).eval()
    return len(list(equalizable(capture(layers, IMAGE))))


def test_layers_pair_through_what_passes_a_factor_on() -> None:
    assert pairs() == pairs(nn.ReLU()) == pairs(nn.LeakyReLU(), nn.MaxPool2d(2)) == 1
    assert pairs(nn.Upsample(scale_factor=2), nn.Dropout(), nn.AvgPool2d(2)) == 1


@pytest.mark.parametrize("between", [nn.ReLU6(), nn.Hardtanh(), nn.SiLU(), nn.Sigmoid()])
def test_layers_do_not_pair_through_what_cuts_off_or_bends(between: nn.Module) -> None:
    assert pairs(between) == 0


class Residual(nn.Module):
    """Two layers whose first one is also added to the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, row: Tensor) -> Tensor:
        features = torch.relu(self.first(row))
        return features + self.second(features)  # type: ignore[no-any-return]


class Tied(nn.Module):
    """A word model that reads and writes with one matrix, behind a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(8, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.words(ids)))  # type: ignore[no-any-return]


def test_channels_that_anything_else_reads_are_left_alone() -> None:
    assert not list(equalizable(capture(Residual().eval(), (torch.zeros(1, 4),))))
    assert not list(smoothable(capture(Tied().eval(), (torch.zeros(1, 3, dtype=torch.int64),))))


# ---- what puts weights on the exporters' grid


@pytest.fixture(scope="module")
def trunk() -> Specimen:
    """Convolutions without a bias behind BatchNorm, and linear layers."""
    return ZOO["two-inputs"]()


def grid_of(option: str) -> str:
    return option.rpartition(" ")[2] if option.rpartition(" ")[2] in GRIDS else "int8"


@pytest.mark.parametrize("option", ROUNDED)
def test_weights_come_out_where_nearest_rounding_leaves_them(trunk: Specimen, option: str) -> None:
    changed = rounded(trunk, option)
    layers = layers_of(capture(changed, trunk.example)).values()
    assert len(layers) == 5
    for layer in layers:
        weights = layer.rows()
        steps = GRIDS[grid_of(option)].steps(layer.site.kind, weights)
        again = steps.nearest(weights) * steps.scale
        torch.testing.assert_close(again, weights, rtol=1e-5, atol=1e-7)
        assert len((weights / steps.scale).round().unique()) <= steps.high - steps.low + 1


@pytest.mark.parametrize("option", ["adaround, bias-correction", "smooth, gptq"])
def test_rounding_is_repeatable_and_leaves_the_original_alone(option: str) -> None:
    specimen = ZOO["bert"]()
    before = copy.deepcopy(specimen.network.state_dict())
    one, other = (rounded(specimen, option).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert any(not torch.equal(one[key], before[key]) for key in before)
    after = specimen.network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def stored_in_onnx(path: Path) -> Mapping[str, np.ndarray]:
    """The weights as onnxruntime computes with them, by their names."""
    model = onnx.load(path)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    found = {}
    for name, scale in constants.items():
        if name.endswith("_scale") and scale.size > 1 and "bias" not in name:
            layer = name.removesuffix("_scale")
            whole = constants.get(f"{layer}_quantized", constants.get(f"{layer}_quantized_stored"))
            assert whole is not None
            found[layer] = whole.astype(np.float32) * scale.reshape(-1, *(1,) * (whole.ndim - 1))
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            bytes_, scales = (constants[one] for one in node.input[1:3])
            halves = np.stack([bytes_ & 15, bytes_ >> 4], axis=-1).astype(np.float32) - 8
            rows = halves.reshape(*bytes_.shape[:2], -1) * scales.reshape(*bytes_.shape[:2], 1)
            depth = next(entry.i for entry in node.attribute if entry.name == "K")
            found[node.input[1]] = rows.reshape(len(rows), -1)[:, :depth]
    return found


def stored_in_tflite(path: Path) -> Mapping[str, np.ndarray]:
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    found = {}
    for detail in interpreter.get_tensor_details():
        scales = detail["quantization_parameters"]["scales"]
        if len(scales) > 1 and len(detail["shape"]) > 1:
            axis = detail["quantization_parameters"]["quantized_dimension"]
            whole = np.moveaxis(interpreter.get_tensor(detail["index"]).astype(np.float32), axis, 0)
            found[detail["name"]] = whole.reshape(len(whole), -1) * scales[:, None]
    return found


@pytest.mark.parametrize(
    ("format_", "precision", "option", "stored"),
    [
        ("onnx", Precision.INT8_STATIC, "adaround, bias-correction", stored_in_onnx),
        ("onnx", Precision.INT4_WEIGHTS, "clip, adaround int4", stored_in_onnx),
        ("tflite", Precision.INT8_STATIC, "gptq, bias-correction", stored_in_tflite),
    ],
)
def test_exporters_store_exactly_the_weights_that_were_rounded(
    workshop: Workshop,
    trunk: Specimen,
    format_: str,
    precision: Precision,
    option: str,
    stored: Callable[[Path], Mapping[str, np.ndarray]],
    tmp_path: Path,
) -> None:
    changed = replace(trunk, network=rounded(trunk, option))
    subject = workshop.study(changed)
    artifact = export(subject, uniform(subject.program, format_, precision), tmp_path)
    found = list(stored(artifact.path).values())
    layers = layers_of(subject.program).values()
    assert len(found) == len(layers)
    for layer in layers:
        wanted = np.sort(layer.rows().numpy().ravel())
        # Names and layouts differ from format to format: the numbers are the layer's.
        near = [np.sort(one.ravel()) for one in found if one.size == wanted.size]
        assert any(np.allclose(one, wanted, rtol=1e-5, atol=1e-7) for one in near), layer.site


# ---- each technique by itself


def seen_of(rows: Tensor, seed: int) -> Seen:
    """Inputs that mostly follow from a few of them, as those of trained layers do."""
    generator = torch.Generator().manual_seed(seed)
    inputs = rows.shape[-1]
    few = torch.randn(inputs // 4, 500, generator=generator)
    columns = torch.randn(inputs, inputs // 4, generator=generator) @ few
    columns += 0.3 * torch.randn(columns.shape, generator=generator)
    squares = (columns @ columns.T / 500)[None]
    return Seen(squares, squares, (rows @ squares * rows).sum())


@pytest.mark.parametrize("grid", ["int4", "int4-linear", "int8"])
@pytest.mark.parametrize("seed", range(3))
def test_what_looks_at_data_loses_less_of_it_than_the_nearest_step(grid: str, seed: int) -> None:
    rows = torch.randn(1, 8, 40, generator=torch.Generator().manual_seed(seed))
    steps = GRIDS[grid].steps(LayerKind.LINEAR, rows)
    seen = seen_of(rows, seed)
    nearest, up_or_down, one_by_one = (
        float(seen.loss(rows, whole * steps.scale))
        for whole in (
            steps.nearest(rows),
            adaround(rows, steps, seen, 300),
            gptq(rows, steps, seen),
        )
    )
    assert up_or_down < 0.7 * nearest
    assert one_by_one < 0.7 * nearest


ROWS = st.lists(
    st.lists(st.floats(-4, 4, width=32), min_size=5, max_size=5), min_size=1, max_size=4
)


@given(values=ROWS, grid=st.sampled_from(sorted(GRIDS)), kind=st.sampled_from(LayerKind))
def test_clipping_never_rounds_worse_and_nothing_lies_beyond_a_grid(
    values: list[list[float]], grid: str, kind: LayerKind
) -> None:
    rows = torch.tensor(values)[None]
    steps = GRIDS[grid].steps(kind, rows)
    narrow = clipped(rows, steps)

    def error(chosen: Steps) -> float:
        whole = chosen.nearest(rows)
        assert whole.min() >= chosen.low
        assert whole.max() <= chosen.high
        return float((whole * chosen.scale - rows).square().sum())

    assert error(narrow) <= error(steps) * (1 + 1e-5) + 1e-12


def test_corrected_outputs_have_the_mean_that_they_had(trunk: Specimen) -> None:
    changed = rounded(trunk, "bias-correction int4-linear")
    drawn = [inputs for inputs, _ in samples(trunk, 16, seed=0)]
    with torch.no_grad():
        wanted, got = (
            torch.cat([network(*inputs) for inputs in drawn]).mean(dim=0)
            for network in (trunk.network, changed)
        )
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-3)


def test_a_layer_that_sees_only_zeros_is_rounded_to_the_nearest() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    nn.init.constant_(network[0].bias, -1e6)
    layer = layers_of(capture(network, (torch.zeros(1, 4),)))["linear_1"]
    seen = seen_by(layer, [torch.zeros(1, 4)], [torch.zeros(1, 4)], centered=True)
    rows = layer.rows()
    steps = GRIDS["int8"].steps(LayerKind.LINEAR, rows)
    for chosen in (gptq(rows, steps, seen), adaround(rows, steps, seen, 50)):
        assert torch.equal(chosen, steps.nearest(rows))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2),
        nn.Conv2d(4, 4, (1, 5), padding="same", groups=4),
        nn.Conv2d(4, 6, 2, padding="valid"),
        nn.Conv1d(4, 6, 3, stride=2, padding=2),
        nn.Conv1d(4, 6, 4, padding="same"),
        nn.Linear(9, 6),
    ],
    ids=str,
)
def test_rows_times_columns_are_what_a_layer_computes(layer: nn.Module) -> None:
    shape = (1, 4, 9) if isinstance(layer, nn.Conv1d | nn.Linear) else (1, 4, 9, 9)
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    (found,) = layers_of(capture(layer.eval(), (value,))).values()
    assert found.bias is not None
    product = (found.rows() @ found.columns(value)).flatten(0, 1) + found.bias[:, None]
    with torch.no_grad():
        wanted = layer(value)
    wanted = wanted.flatten(0, -2).T if isinstance(layer, nn.Linear) else wanted[0].flatten(1)
    torch.testing.assert_close(product, wanted, rtol=1e-4, atol=1e-5)


# ---- real artifacts


def artifact_decibels(
    workshop: Workshop, specimen: Specimen, precision: Precision, option: str, folder: Path
) -> float:
    """How near an artifact of the rounded network is to the network as it was."""
    (wanted,) = workshop.study(specimen).expected
    changed = replace(specimen, network=rounded(specimen, option)) if option else specimen
    subject: Subject = workshop.study(changed)
    folder.mkdir()
    artifact = export(subject, uniform(subject.program, "onnx", precision), folder)
    (got,) = outputs_of(artifact, subject.held_out)
    return decibels(wanted, got)


def outliers() -> Specimen:
    """A transformer of which three normalized channels are thirtyfold, as in large ones."""
    specimen = ZOO["vit"]()
    torch.manual_seed(0)
    with torch.no_grad():
        for block in specimen.network.blocks:  # type: ignore[union-attr]
            for norm, weight in (
                (block.before_attention, block.attention.in_proj_weight),
                (block.before_mlp, block.mlp[0].weight),
            ):
                loud = torch.randperm(len(norm.weight))[:3]
                for parameter in (norm.weight, norm.bias):
                    parameter[loud] *= 30
                weight[:, loud] /= 15
    return specimen


@pytest.mark.parametrize(
    ("make", "precision", "option", "gain"),
    [
        (scaled, Precision.INT8_STATIC, "equalize", 10),
        (outliers, Precision.INT8_DYNAMIC, "smooth", 8),
        (ZOO["residual-cnn"], Precision.INT4_WEIGHTS, "adaround int4", 6),
        (ZOO["residual-cnn"], Precision.INT4_WEIGHTS, "bias-correction int4", 6),
        (ZOO["bert"], Precision.INT4_WEIGHTS, "gptq int4", 4),
    ],
    ids=["equalize", "smooth", "adaround", "bias-correction", "gptq"],
)
def test_artifacts_come_nearer_to_the_network_where_a_technique_is_for_it(
    workshop: Workshop,
    make: Callable[[], Specimen],
    precision: Precision,
    option: str,
    gain: float,
    tmp_path: Path,
) -> None:
    specimen = make()
    before = artifact_decibels(workshop, specimen, precision, "", tmp_path / "before")
    after = artifact_decibels(workshop, specimen, precision, option, tmp_path / "after")
    assert after > before + gain


# ---- what is offered, and what is refused


def test_only_what_a_network_has_is_offered() -> None:
    for runtime in HOST:
        cnn, transformer = options(ZOO["residual-cnn"](), runtime), options(ZOO["vit"](), runtime)
        assert any("equalize" in option for option in cnn)
        assert not any("smooth" in option for option in cnn)
        assert any("smooth" in option for option in transformer)
        assert not any("equalize" in option for option in transformer)
        assert len(set(cnn)) == len(cnn)


def test_four_bits_are_offered_on_the_grid_of_the_runtime() -> None:
    specimen = ZOO["residual-cnn"]()
    grids = {
        runtime: {grid_of(option) for option in options(specimen, runtime)} for runtime in HOST
    }
    assert grids == {"onnxruntime": {"int8", "int4"}, "litert": {"int8", "int4-linear"}}


def test_nothing_is_offered_where_nothing_is_rounded() -> None:
    bare = replace(HOST["litert"], kernels={LayerKind.LINEAR: (Precision.FP32,)})
    assert not list(ROUND.offers(workload_of(ZOO["bert"]()), bare))


@pytest.mark.parametrize(("name", "runtime"), [("two-inputs", "litert"), ("bert", "onnxruntime")])
def test_every_offer_can_be_carried_out(name: str, runtime: str) -> None:
    specimen = ZOO[name]()
    quick = replace(ROUND, samples=2, iterations=2)
    for offer in quick.offers(workload_of(specimen), HOST[runtime]):
        assert offer.part == NETWORK
        changed = quick.apply(specimen.network, {NETWORK: offer.choice}, workload_of(specimen))
        assert not changed.training
        assert all(torch.isfinite(leaf).all() for leaf in outputs(changed, specimen))


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("adaruond", "no step is called 'adaruond'. Did you mean 'adaround'?"),
        ("adaround int5", "no step is called 'adaround int5'."),
        ("", "no step is called ''."),
        ("gptq, adaround", "rounds twice"),
    ],
)
def test_an_option_that_is_none_is_refused(trunk: Specimen, option: str, complaint: str) -> None:
    with pytest.raises(MethodFailed, match="^round the network: ") as failed:
        rounded(trunk, option)
    assert complaint in str(failed.value)


def test_another_part_than_the_whole_network_is_refused(trunk: Specimen) -> None:
    layer = Part("head", PartKind.LAYER)
    with pytest.raises(MethodFailed, match="works on the network as a whole, not on head"):
        ROUND.apply(trunk.network, {layer: Choice("round", "clip")}, workload_of(trunk))
