"""Zeros come where they matter least, stay there, and are offered only where they help."""

from __future__ import annotations

import copy
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_build import workload_of
from torch import Tensor, nn
from zoo import ZOO, samples

from edgebuild import Workload
from edgebuild.methods._factorize_forms import regularized
from edgebuild.methods.sparsify import (
    LEAST_WEIGHTS,
    OPTIONS,
    Sparsify,
    compressed_size,
    keep_share,
    keep_two_of_four,
    sparse,
)
from edgebuild.vocabulary.contracts import Stage
from edgebuild.vocabulary.errors import MethodFailed
from edgebuild.vocabulary.offer import Choice, Part, PartKind
from edgebuild.vocabulary.target import Activations, RuntimeFacts


def runtime(name: str = "litert") -> RuntimeFacts:
    return RuntimeFacts(name, "any", 1, Activations.INT8, 8, {})


@st.composite
def scores(draw: st.DrawFn) -> Tensor:
    shape = [draw(st.integers(1, 9)) for _ in range(draw(st.sampled_from((2, 4))))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.rand(shape, generator=generator)


@given(scores(), st.floats(0, 1))
def test_every_output_keeps_its_best_weights(given_: Tensor, share: float) -> None:
    kept = keep_share(given_, share)
    assert kept.shape == given_.shape
    for row, mask in zip(given_.flatten(1), kept.flatten(1).bool(), strict=True):
        assert int(mask.sum()) == max(round(share * len(row)), 1)
        assert mask.all() or row[mask].min() >= row[~mask].max()


@given(scores())
def test_of_four_neighboring_inputs_the_two_best_stay(given_: Tensor) -> None:
    kept = keep_two_of_four(given_)
    for first in range(0, given_.shape[1], 4):
        group, mask = given_[:, first : first + 4], kept[:, first : first + 4]
        count = min(group.shape[1], 2)
        assert (mask.sum(1) == count).all()
        best = group.topk(count, dim=1).values.sum(1)
        torch.testing.assert_close((group * mask).sum(1), best)


@given(scores(), st.integers(0, 2**31))
def test_the_weights_that_stay_make_up_for_those_that_go(given_: Tensor, seed: int) -> None:
    """They come nearer to what the layer put out than the same weights as they were."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(given_.shape, generator=generator).double()
    size = weight[0].numel()
    rows = torch.randn(40, size, generator=generator) @ torch.randn(size, size, generator=generator)
    moment = (rows.T @ rows / len(rows)).double()
    mask = keep_share(given_, 0.5).bool()
    found = sparse(weight, moment, lambda _: mask)
    assert (found[~mask] == 0).all()
    assert metric_error(weight, found, moment) <= metric_error(weight, weight * mask, moment) + 1e-9


def metric_error(weight: Tensor, other: Tensor, moment: Tensor) -> float:
    missing = (weight - other).flatten(1)
    return float(torch.trace(missing @ regularized(moment) @ missing.T))


def test_a_weight_matters_as_much_as_what_it_is_multiplied_with() -> None:
    """The largest weight reads what is always dark."""
    weight = torch.tensor([[9.0, 1.0, 2.0, 3.0]])
    moment = torch.diag(torch.tensor([0.0, 1.0, 1.0, 1.0])).double()
    found = sparse(weight, moment, keep_two_of_four)
    assert found.bool().tolist() == [[False, False, True, True]]


def small() -> tuple[nn.Sequential, Workload]:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    ).eval()
    images = list(torch.split(torch.randn(20, 3, 8, 8), 1))
    return network, workload_of(network, images[0], images, images)


def test_it_acts_after_training_and_before_rounding() -> None:
    """Methods act by their stages, and by their names within one."""
    assert (Stage.RECOVER, "distill") < (Sparsify.stage, "sparsify") < (Stage.ROUND, "round")


def at(path: str, option: str) -> dict[Part, Choice]:
    return {Part(path, PartKind.LAYER): Choice("sparsify", option)}


@pytest.mark.parametrize(
    ("option", "zeros"),
    [("2:4", 0.5), ("unstructured 50 %", 0.5), ("unstructured 90 %", 0.9)],
)
def test_so_many_weights_of_a_layer_are_zero(option: str, zeros: float) -> None:
    network, workload = small()
    before = copy.deepcopy(network.state_dict())
    changed = Sparsify().apply(network, at("4", option) | at("7", option), workload)
    for path in ("4", "7"):
        weight = changed.get_parameter(f"{path}.weight")
        assert float((weight == 0).float().mean()) == pytest.approx(zeros, abs=0.01)
    for key, value in changed.state_dict().items():
        assert torch.equal(before[key], network.state_dict()[key])
        assert torch.equal(before[key], value) == (key not in ("4.weight", "7.weight"))
    assert not changed.training


def test_half_the_weights_go_almost_unnoticed() -> None:
    """Where the inputs hang together, the other half can say the same."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 32)).eval()
    rows = list((torch.randn(64, 16) @ torch.randn(16, 64)).split(1))
    workload = workload_of(network, rows[0], rows, rows)
    changed = Sparsify().apply(network, at("0", "unstructured 50 %"), workload)
    masked = copy.deepcopy(network)
    masked[0].weight.data *= changed.get_parameter("0.weight") != 0
    with torch.no_grad():
        wanted, got, naive = (net(torch.cat(rows)) for net in (network, changed, masked))
    assert (wanted - got).square().mean() < 0.01 * (wanted - naive).square().mean()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("onnxruntime", "measured 0.98 to 1.04 times"),
        ("litert", "measured 1.01 times as fast"),
        ("another", "no gain of speed from zeros was ever measured in another"),
    ],
)
def test_nothing_is_offered_for_speed_and_the_reason_is_told(name: str, reason: str) -> None:
    _, workload = small()
    assert list(Sparsify().offers(workload, runtime(name))) == []
    assert reason in Sparsify().declined(workload, runtime(name))[""]


def test_where_storage_binds_every_large_layer_is_offered() -> None:
    network, workload = small()
    method = Sparsify(storage_binds=True)
    offers = list(method.offers(workload, runtime()))
    assert method.declined(workload, runtime()) == {}
    assert {offer.part.path for offer in offers} == {"4", "7"}
    assert {offer.choice.option for offer in offers} == set(OPTIONS)
    assert network[0].weight.numel() < LEAST_WEIGHTS


@pytest.mark.parametrize("name", ["mobilenet-v2", "vit", "bert", "convnext"])
def test_every_offer_can_be_carried_out(name: str) -> None:
    specimen = ZOO[name]()
    rows = samples(specimen, 4, seed=0)
    workload = Workload(name, specimen.network, specimen.example, rows, rows, ())
    method = Sparsify(storage_binds=True, samples=4)
    offers = list(method.offers(workload, runtime()))
    assert offers
    for option in OPTIONS:
        chosen = {offer.part: offer.choice for offer in offers if offer.choice.option == option}
        changed = method.apply(workload.network, chosen, workload)
        with torch.no_grad():
            changed(*workload.example)
        for part in chosen:
            assert (changed.get_parameter(f"{part.path}.weight") == 0).any()


def test_a_layer_that_is_gone_needs_nothing() -> None:
    network, workload = small()
    without = copy.deepcopy(network)
    without[4] = nn.Identity()
    without[7] = nn.Linear(16 * 64, 10)
    changed = Sparsify().apply(without, at("4", "2:4") | at("7", "2:4"), workload)
    assert (changed.get_parameter("7.weight") == 0).any()


BROKEN = {
    "no such layer": (at("9", "2:4"), "9: is no linear layer or 2-D convolution"),
    "grouped": (at("3", "2:4"), "3: is a convolution in 16 groups"),
    "no pattern": (at("4", "1:2"), "4: '1:2' is no pattern of zeros"),
    "no weights left": (at("4", "unstructured 100 %"), "is no pattern of zeros"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_carried_out_is_refused(name: str) -> None:
    chosen, reason = BROKEN[name]
    network, workload = small()
    with pytest.raises(MethodFailed, match=reason):
        Sparsify().apply(network, chosen, workload)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 7])
def test_the_compressed_size_is_that_of_the_whole_file(tmp_path: Path, size: int) -> None:
    content = torch.randint(0, 9, (size,), dtype=torch.uint8).numpy().tobytes()
    (tmp_path / "file").write_bytes(content)
    assert compressed_size(tmp_path / "file") == len(zlib.compress(content, 9))


def test_zeros_compress(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 256)
    moment = torch.eye(256).double()
    sizes = []
    for share in (1.0, 0.5, 0.2, 0.1):
        kept = sparse(weight, moment, lambda matters, share=share: keep_share(matters, share))
        (tmp_path / "weights").write_bytes(kept.numpy().tobytes())
        sizes.append(compressed_size(tmp_path / "weights"))
    assert sizes[0] > 0.9 * weight.nbytes
    assert sizes[1] < 0.65 * sizes[0]
    assert sizes[2] < 0.35 * sizes[0]
    assert sizes[3] < 0.2 * sizes[0]
