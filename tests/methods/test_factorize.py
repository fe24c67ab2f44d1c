"""Thin layers compute what the layer did, as well as their ranks allow, and are as offered."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_build import workload_of
from torch import Tensor, nn
from torch.nn import functional
from zoo import ZOO, samples

from edgebuild import Workload
from edgebuild.cache import Cache
from edgebuild.methods import _input_moments
from edgebuild.methods._factorize_forms import (
    Form,
    Rank,
    Separable,
    Spatial,
    Tucker,
    form_of,
    forms_of,
    is_lighter,
    regularized,
)
from edgebuild.methods._input_moments import (
    Samples,
    calibration,
    kept_moments,
    patches,
    second_moments,
)
from edgebuild.methods._own_layers import (
    OwnLayer,
    own_layers,
)
from edgebuild.methods.factorize import LEAST_MACS, Factorize, factorized
from edgebuild.samples import store_split
from edgebuild.vocabulary.errors import MethodFailed
from edgebuild.vocabulary.offer import Choice, LayerShape, Offer, Part, PartKind, macs, weights
from edgebuild.vocabulary.precision import LayerKind
from edgebuild.vocabulary.target import Activations, RuntimeFacts

RUNTIME = RuntimeFacts("onnxruntime", "any", 1, Activations.UINT8, 8, {})
WIDE = 10**6


RANKED = (Rank, Spatial, Tucker)


@st.composite
def layers(
    draw: st.DrawFn, kinds: Sequence[type[Form]] = (*RANKED, Separable)
) -> tuple[nn.Module, Tensor, Form]:
    """A small layer, inputs of it that hang together, and a form that suits it, with any ranks."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from(kinds))
    inputs, outputs = draw(st.integers(2 if kind is Separable else 1, 6)), draw(st.integers(1, 6))
    has_bias = draw(st.booleans())
    if kind is Rank and draw(st.booleans()):
        layer: nn.Linear | nn.Conv2d = nn.Linear(inputs, outputs, has_bias)
        given_ = torch.randn(12, inputs, generator=generator)
    else:
        sizes = st.just(1) if kind is Rank else st.integers(2, 3)
        layer = nn.Conv2d(
            inputs,
            outputs,
            (draw(sizes), draw(sizes)),
            (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
            (draw(st.integers(0, 2)), draw(st.integers(0, 2))),
            (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
            bias=has_bias,
        )
        given_ = torch.randn(4, inputs, 7, 9, generator=generator).cumsum(-1)
    mixing = torch.randn(inputs, inputs, generator=generator)
    given_ = torch.einsum("ij,bj...->bi...", mixing, given_)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    ranks = [draw(st.integers(1, 12)) for _ in fields(kind)]  # type: ignore[arg-type]
    return layer.double(), given_.double(), kind(*ranks)


def own(layer: nn.Module, given_: Tensor) -> OwnLayer:
    return own_layers(nn.Sequential(layer), (given_[:1],))["0"]


def moment_of(layer: nn.Module, given_: Tensor) -> Tensor:
    rows = patches(own(layer, given_).module, given_)
    return rows.T @ rows / len(rows)


def error(layer: nn.Module, thin: nn.Module, given_: Tensor) -> float:
    """The mean squared difference of the outputs."""
    with torch.no_grad():
        return float((layer(given_) - thin(given_)).square().mean())


@given(layers(RANKED))
@settings(max_examples=60)
def test_thin_layers_of_full_rank_are_the_layer(case: tuple[nn.Module, Tensor, Form]) -> None:
    layer, given_, form = case
    full = replace(form, **dict.fromkeys(vars(form), WIDE))  # type: ignore[type-var]
    one = own(layer, given_)
    moment = regularized(moment_of(layer, given_))
    thin = factorized(one, full.within(one.shape), moment)
    torch.testing.assert_close(thin(given_), layer(given_), rtol=1e-6, atol=1e-6)


@given(layers())
@settings(max_examples=60)
def test_thin_layers_are_one_layer_with_the_product_of_their_weights(
    case: tuple[nn.Module, Tensor, Form],
) -> None:
    """At every border and stride, though the layers in between pad with zeros of their own."""
    layer, given_, form = case
    one = own(layer, given_)
    thin = factorized(one, form.within(one.shape), regularized(moment_of(layer, given_)))
    found = [part.weight for part in thin]
    if isinstance(layer, nn.Linear):
        expected = functional.linear(given_, found[1] @ found[0], layer.bias)
    else:
        assert isinstance(layer, nn.Conv2d)
        dense = product(found)
        settings_ = layer.stride, layer.padding, layer.dilation
        expected = functional.conv2d(given_, dense, layer.bias, *settings_)
    torch.testing.assert_close(thin(given_), expected)


def product(factors: list[Tensor]) -> Tensor:
    """The kernel that convolutions one after the other amount to."""
    if len(factors) == 3:
        into, core, out = factors
        return torch.einsum("or,rqhw,qi->oihw", out[..., 0, 0], core, into[..., 0, 0])
    along, across = factors
    if along.shape[2:] != (1, 1) == across.shape[2:]:
        return across * along.transpose(0, 1)
    return torch.einsum("orw,rih->oihw", across[:, :, 0, :], along[..., 0])


@given(layers())
@settings(max_examples=60)
def test_fitting_to_the_inputs_is_never_worse_than_fitting_to_the_weights(
    case: tuple[nn.Module, Tensor, Form],
) -> None:
    layer, given_, form = case
    one = own(layer, given_)
    form = form.within(one.shape)
    moment = moment_of(layer, given_)
    plain = factorized(one, form, torch.eye(len(moment)).double())
    aware = factorized(one, form, regularized(moment))
    # The ridge lets it give away this much for directions that no sample shows.
    missing = (one.module.weight - dense_weight(plain, one)).detach()
    ridge = float(1e-3 * moment.diagonal().mean() * missing.square().sum() / one.shape.outputs)
    assert error(layer, aware, given_) <= error(layer, plain, given_) + ridge + 1e-9


def dense_weight(thin: nn.Sequential, one: OwnLayer) -> Tensor:
    found = [part.weight.detach() for part in thin]
    if found[0].ndim == 2:
        return found[1] @ found[0]
    return product(found).reshape(one.module.weight.shape)


@given(layers())
@settings(max_examples=60)
def test_a_larger_rank_never_loses_more(case: tuple[nn.Module, Tensor, Form]) -> None:
    layer, given_, form = case
    one = own(layer, given_)
    form = form.within(one.shape)
    moment = regularized(moment_of(layer, given_))
    lost = [
        metric_error(factorized(one, size, moment), one, moment)
        for size in (form.thinner().within(one.shape), form)
    ]
    assert lost[1] <= lost[0] + 1e-9


def metric_error(thin: nn.Sequential, one: OwnLayer, moment: Tensor) -> float:
    missing = (one.module.weight - dense_weight(thin, one)).detach().flatten(1)
    return float(torch.trace(missing @ moment @ missing.T))


def test_the_two_thin_linear_layers_are_the_best_there_are() -> None:
    """Of inputs in a plane, two features tell everything, which a plain decomposition misses."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 16).double()
    plane = torch.randn(64, 2).double() @ torch.randn(2, 16).double()
    one = own(layer, plane)
    moment = moment_of(layer, plane)
    aware = factorized(one, Rank(2), regularized(moment))
    plain = factorized(one, Rank(2), torch.eye(16).double())
    assert error(layer, aware, plane) < 1e-6
    assert error(layer, plain, plane) > 0.1


@pytest.mark.parametrize("form", [Spatial(6), Tucker(2, 8)], ids=lambda form: form.option)
def test_channels_that_hang_together_need_few_ranks(form: Form) -> None:
    """Six channels that are mixtures of two."""
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 8, 3, padding=1).double()
    images = torch.einsum("ij,bjhw->bihw", torch.randn(6, 2), torch.randn(8, 2, 7, 7)).double()
    one = own(layer, images)
    moment = moment_of(layer, images)
    aware = factorized(one, form, regularized(moment))
    plain = factorized(one, form, torch.eye(54).double())
    assert error(layer, aware, images) < 1e-5
    assert error(layer, plain, images) > 0.01


def test_a_convolution_that_is_separable_stays_what_it_is() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 8, 3, stride=2, padding=1).double()
    kernels, mixing = torch.randn(1, 6, 3, 3), torch.randn(8, 6, 1, 1)
    layer.weight.data = (kernels * mixing).double()
    images = torch.randn(8, 6, 9, 9).double().cumsum(-1)
    one = own(layer, images)
    thin = factorized(one, Separable(), regularized(moment_of(layer, images)))
    assert [part.groups for part in thin] == [6, 1]
    torch.testing.assert_close(thin(images), layer(images), rtol=1e-6, atol=1e-6)


@st.composite
def shapes(draw: st.DrawFn) -> LayerShape:
    widths = draw(st.integers(1, 200)), draw(st.integers(1, 200))
    if draw(st.booleans()):
        return LayerShape(LayerKind.LINEAR, *widths, draw(st.sampled_from(((), (7,)))))
    kernel = draw(st.sampled_from(((1, 1), (3, 3), (1, 5), (7, 2))))
    extent = draw(st.integers(8, 20)), draw(st.integers(8, 20))
    stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rest = extent, kernel, stride, (1, 0), (1, 1)
    return LayerShape(LayerKind.CONVOLUTION, *widths, *rest)


@given(shapes(), st.sampled_from((1, 8, 16)))
def test_every_size_is_a_multiple_and_no_larger_than_full_rank(
    shape: LayerShape, multiple: int
) -> None:
    for sizes in forms_of(shape, multiple):
        for form in sizes:
            assert form.suits(shape)
            assert form.within(shape) == form
            assert all(rank % multiple == 0 for rank in vars(form).values())
            assert form_of(form.option) == form


@given(shapes(), st.sampled_from((1, 8)), st.data())
def test_a_size_that_saves_nothing_grows_thinner_until_it_does(
    shape: LayerShape, multiple: int, data: st.DataObject
) -> None:
    sizes = list(forms_of(shape, multiple))
    assume(sizes)
    form = data.draw(st.sampled_from(data.draw(st.sampled_from(sizes))))
    while form.thinner() != form:
        assert sum(weights(s) for s in form.thinner().shapes(shape)) < sum(
            weights(s) for s in form.shapes(shape)
        )
        form = form.thinner()


def offers_of(workload: Workload) -> list[Offer]:
    return list(Factorize().offers(workload, RUNTIME))


def of_zoo(name: str) -> Workload:
    specimen = ZOO[name]()
    rows = samples(specimen, 8, seed=0)
    return Workload(name, specimen.network, specimen.example, rows, rows, ())


@pytest.mark.parametrize("name", ZOO)
def test_what_is_offered_stands_there_afterwards(name: str) -> None:
    """One offer of every part at once; the forms take turns."""
    workload = of_zoo(name)
    by_part: dict[Part, list[Offer]] = {}
    for offer in offers_of(workload):
        by_part.setdefault(offer.part, []).append(offer)
    picked = [offers[number % len(offers)] for number, offers in enumerate(by_part.values())]
    chosen = {offer.part: offer.choice for offer in picked}
    changed = Factorize(samples=4).apply(workload.network, chosen, workload)
    found = own_layers(changed, workload.example)
    for offer in picked:
        for number, shape in enumerate(offer.replaced[offer.part.path]):
            assert found[f"{offer.part.path}.{number}"].shape == shape
    with torch.no_grad():
        changed(*workload.example)


def test_the_large_layers_of_most_families_are_offered() -> None:
    offered = {name for name in ZOO if offers_of(of_zoo(name))}
    assert offered >= {"residual-cnn", "mobilenet-v2", "u-net", "vit", "bert", "convnext"}


@pytest.mark.parametrize("name", ["residual-cnn", "mobilenet-v2", "vit", "u-net"])
def test_every_offer_leaves_at_most_three_quarters_of_a_layer(name: str) -> None:
    workload = of_zoo(name)
    layers_ = own_layers(workload.network, workload.example)
    for offer in offers_of(workload):
        (path, thin) = next(iter(offer.replaced.items()))
        whole = layers_[path].shape
        assert sum(map(macs, thin)) <= 0.75 * macs(whole)
        assert sum(map(weights, thin)) < weights(whole)
        assert macs(whole) >= LEAST_MACS
        assert whole.groups == 1


def test_a_layer_must_have_enough_to_do() -> None:
    row, tokens = torch.randn(1, 64), torch.randn(1, 16, 64)
    network = nn.Sequential(nn.Linear(64, 64))
    assert offers_of(workload_of(network, row, [row], [row])) == []
    assert offers_of(workload_of(network, tokens, [tokens], [tokens])) != []


def test_a_form_must_save_weights_too() -> None:
    """A wide border makes the outputs many, and so the 1×1 convolution of the inputs cheap."""
    rest = (1, 1), (3, 3), (1, 1), (3, 3), (1, 1)
    shape = LayerShape(LayerKind.CONVOLUTION, 16, 1, *rest)
    thin = Tucker(8, 1).shapes(shape)
    assert sum(map(macs, thin)) < macs(shape)
    assert sum(map(weights, thin)) > weights(shape)
    assert not is_lighter(Tucker(8, 1), shape)


class Attention(nn.Module):
    """Reads the weights of one layer instead of calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.after = nn.Linear(64, 64)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.after(self.attention(tokens, tokens, tokens)[0])  # type: ignore[no-any-return]


class Curious(nn.Module):
    """Looks into one of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_into = nn.Linear(64, 64)
        self.left_alone = nn.Linear(64, 64)

    def forward(self, tokens: Tensor) -> Tensor:
        scale = self.looked_into.out_features**-0.5
        return self.left_alone(self.looked_into(tokens)) * scale  # type: ignore[no-any-return]


class Tied(nn.Module):
    """Has one weight in two modules, and one layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(64, 64)
        self.head = nn.Linear(64, 64, bias=False)
        self.head.weight = self.words.weight
        self.twice = nn.Linear(64, 64)
        self.free = nn.Linear(64, 64)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.free(self.twice(self.twice(tokens))))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("network", "offered"),
    [(Attention(), {"after"}), (Curious(), {"left_alone"}), (Tied(), {"free"})],
    ids=lambda value: type(value).__name__,
)
def test_layers_that_others_read_are_not_offered(network: nn.Module, offered: set[str]) -> None:
    tokens = torch.randn(1, 16, 64)
    offers = offers_of(workload_of(network, tokens, [tokens], [tokens]))
    assert {offer.part.path for offer in offers} == offered


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(64, 64, 3, padding=1, groups=64),
        nn.Conv2d(64, 64, 3, padding=1, groups=2),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(64, 64, 4, padding="same"),
        nn.Conv2d(3, 4, 1),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(64, 64, 3)),
    ],
    ids=["depthwise", "grouped", "circular", "lopsided", "tiny", "parametrized"],
)
def test_layers_that_cannot_be_replaced_are_not_offered(layer: nn.Module) -> None:
    channels = layer.in_channels
    assert isinstance(channels, int)
    image = torch.randn(1, channels, 8, 8)
    network = nn.Sequential(layer, nn.ReLU())
    assert offers_of(workload_of(network, image, [image], [image])) == []


def small() -> tuple[nn.Sequential, list[Tensor]]:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding="same"),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    ).eval()
    return network, list(torch.split(torch.randn(20, 3, 8, 8), 1))


def at(path: str, option: str) -> dict[Part, Choice]:
    return {Part(path, PartKind.LAYER): Choice("factorize", option)}


def test_the_network_itself_is_left_as_it_was() -> None:
    network, images = small()
    before = copy.deepcopy(network.state_dict())
    workload = workload_of(network, images[0], images, images)
    changed = Factorize().apply(network, at("3", "tucker 8 x 16"), workload)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not changed.training
    assert not any(layer.training for layer in changed.modules())
    assert all(parameter.requires_grad for parameter in changed.parameters())
    assert not network[3]._forward_pre_hooks


def test_the_bias_stays_in_the_last_layer() -> None:
    network, images = small()
    workload = workload_of(network, images[0], images, images)
    changed = Factorize().apply(network, at("3", "spatial rank 8"), workload)
    first, last = changed.get_submodule("3.0"), changed.get_submodule("3.1")
    assert isinstance(first, nn.Conv2d)
    assert isinstance(last, nn.Conv2d)
    assert first.bias is None
    assert last.bias is not None
    assert torch.equal(last.bias, network[3].bias)


def test_it_is_fitted_to_the_calibration_samples() -> None:
    """Only the first channel is ever lit, so that one rank is enough for it."""
    network, images = small()
    for image in images:
        image[:, 1:] = 0
    workload = workload_of(network, images[0], images, images)
    changed = Factorize().apply(network, at("0", "tucker 1 x 9"), workload)
    lit, dark = images[0], torch.randn(1, 3, 8, 8)
    assert error(network, changed, lit) < 1e-4 * error(network, changed, dark)


def test_a_split_may_be_stored_already(tmp_path: Path) -> None:
    network, images = small()
    workload = workload_of(network, images[0], images, images)
    stored = store_split(workload.calibration, workload.example, "any", Cache(tmp_path))
    one, other = (
        Factorize().apply(network, at("6", "rank 4"), given_)
        for given_ in (workload, replace(workload, calibration=stored))
    )
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_the_moment_is_the_mean_over_all_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = small()
    workload = workload_of(network, images[0], images, images)
    layers_ = own_layers(network, workload.example)
    with calibration(workload, len(images)) as shown:
        at_once = dict(second_moments(network, layers_, shown))
        monkeypatch.setattr(_input_moments, "BYTES_OF_MOMENTS", 1.0)
        one_by_one = dict(second_moments(network, layers_, shown))
    padded = functional.pad(torch.cat(images), (1, 1, 1, 1)).double()
    seen = torch.stack(
        [padded[:, :, y : y + 3, x : x + 3].flatten(1) for y in range(8) for x in range(8)]
    ).flatten(0, 1)
    torch.testing.assert_close(at_once["0"], seen.T @ seen / len(seen), rtol=1e-5, atol=1e-6)
    assert at_once.keys() == one_by_one.keys() == {"0", "3", "6"}
    for path, moment in at_once.items():
        assert torch.equal(one_by_one[path], moment)


def test_layers_of_one_network_are_seen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many changes are tried, and whichever layers are kept in memory together."""
    network, images = small()
    workload = workload_of(network, images[0], images, images)
    seen: list[list[str]] = []
    original = _input_moments._moments

    def counted(network: nn.Module, layers: Mapping[str, OwnLayer], samples: Samples) -> object:
        seen.append(list(layers))
        return original(network, layers, samples)

    monkeypatch.setattr(_input_moments, "_moments", counted)
    able = own_layers(network, workload.example)
    together = [dict(kept_moments(workload, {"0", "6"}, 64)) for _ in range(3)]
    assert seen == [list(able)]
    monkeypatch.setattr(_input_moments, "BYTES_TO_KEEP", 1.0)
    alone = dict(kept_moments(workload, {"0", "6"}, 64))
    assert alone.keys() == together[0].keys() == {"0", "6"}
    for path, moment in alone.items():
        assert torch.equal(together[-1][path], moment)


def test_a_network_whose_weights_have_changed_is_seen_anew() -> None:
    network, images = small()
    workload = workload_of(network, images[0], images, images)
    before = Factorize().apply(network, at("6", "rank 4"), workload)
    with torch.no_grad():
        network.get_submodule("0").weight.mul_(-2)
    after = Factorize().apply(network, at("6", "rank 4"), workload)
    alone = Factorize().apply(copy.deepcopy(network), at("6", "rank 4"), workload)
    assert not torch.equal(before.get_submodule("6.0").weight, after.get_submodule("6.0").weight)
    assert torch.equal(alone.get_submodule("6.0").weight, after.get_submodule("6.0").weight)


def narrowed(width: int) -> nn.Sequential:
    """The small network after channels between its convolutions were removed."""
    network, _ = small()
    network[0] = nn.Conv2d(3, width, 3, padding=1)
    network[1] = nn.BatchNorm2d(width)
    network[3] = nn.Conv2d(width, 32, 3, 2, 1)
    return network.eval()


@pytest.mark.parametrize("option", ["spatial rank 24", "tucker 8 x 24", "tucker 8 x 8"])
def test_a_narrower_layer_gets_the_largest_rank_that_saves_something(option: str) -> None:
    network, images = small()
    workload = workload_of(network, images[0], images, images)
    thin = narrowed(4)
    changed = Factorize().apply(thin, at("3", option), workload)
    whole = own_layers(thin, workload.example)["3"].shape
    stands = own_layers(changed, workload.example)
    made = [layer.shape for path, layer in stands.items() if path.startswith("3.")]
    assert sum(map(macs, made)) < macs(whole)
    assert sum(map(weights, made)) < weights(whole)
    larger = form_of(option).within(whole)
    while larger.shapes(whole) != tuple(made):
        assert not is_lighter(larger, whole)
        larger = larger.thinner().within(whole)


def test_a_layer_that_is_too_narrow_for_any_rank_is_refused() -> None:
    rows = list(torch.randn(4, 1, 64))
    network = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64))
    workload = workload_of(network, rows[0], rows, rows)
    narrow = nn.Sequential(nn.Linear(64, 1), nn.Linear(1, 64)).eval()
    with pytest.raises(MethodFailed, match="1: 1 inputs and 64 outputs are too few to save"):
        Factorize().apply(narrow, at("1", "rank 8"), workload)


def test_a_layer_that_is_gone_needs_nothing() -> None:
    network, images = small()
    workload = workload_of(network, images[0], images, images)
    without = copy.deepcopy(network)
    without[0] = nn.Conv2d(3, 16, 1)
    without[3] = nn.Identity()
    without[6] = nn.Linear(16 * 64, 10)
    changed = Factorize().apply(without, at("3", "tucker 8 x 16") | at("6", "rank 4"), workload)
    assert isinstance(changed.get_submodule("3"), nn.Identity)
    assert isinstance(changed.get_submodule("6"), nn.Sequential)


def test_tokens_and_rows_are_told_apart() -> None:
    """As a runtime's kernels do: a product of a vector, and one of a matrix."""
    layer = nn.Linear(8, 4)
    assert own(layer, torch.randn(1, 8)).shape.extent == ()
    assert own(layer, torch.randn(1, 6, 8)).shape.extent == (6,)
    assert own(layer, torch.randn(1, 1, 8)).shape.extent == (1,)


BROKEN: dict[str, tuple[dict[Part, Choice], str]] = {
    "no such layer": (at("9", "rank 4"), "9: is no linear layer or 2-D convolution"),
    "no weights": (at("2", "rank 4"), "2: is no linear layer or 2-D convolution"),
    "no form": (at("6", "rank -4"), "6: 'rank -4' is no form that a layer can take"),
    "no rank": (at("6", "rank 0"), "6: 'rank 0' is no form that a layer can take"),
    "unsuited": (at("3", "rank 4"), "3: rank 4 does not suit a 3×3 convolution"),
    "unsuited to rows": (at("6", "spatial rank 4"), "6: spatial rank 4 does not suit a linear"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_carried_out_is_refused(name: str) -> None:
    chosen, reason = BROKEN[name]
    network, images = small()
    workload = workload_of(network, images[0], images, images)
    with pytest.raises(MethodFailed, match=reason):
        Factorize().apply(network, chosen, workload)


def test_a_layer_that_the_network_looks_into_is_refused() -> None:
    tokens = torch.randn(1, 16, 64)
    workload = workload_of(Curious(), tokens, [tokens], [tokens])
    with pytest.raises(MethodFailed, match="looked_into: the network reads more of it"):
        Factorize().apply(workload.network, at("looked_into", "rank 16"), workload)


def test_a_layer_that_no_sample_reaches_is_refused() -> None:
    class Choosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def forward(self, row: Tensor) -> Tensor:
            return self.layer(row) if row.sum() > 0 else row  # type: ignore[no-any-return]

    row = torch.ones(1, 64)
    workload = workload_of(Choosy(), row, [-row], [row])
    with pytest.raises(MethodFailed, match="layer: no calibration sample goes through it"):
        Factorize().apply(workload.network, at("layer", "rank 16"), workload)


def test_randomness_of_the_caller_is_left_alone() -> None:
    network, images = small()
    workload = workload_of(network, images[0], images, images)
    torch.manual_seed(1)
    Factorize().apply(network, at("6", "rank 4"), workload)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))


def every_form() -> Iterator[Form]:
    yield from (Rank(3), Spatial(3), Tucker(2, 3))


@pytest.mark.parametrize("form", every_form(), ids=lambda form: form.option)
def test_an_option_names_its_form(form: Form) -> None:
    assert form_of(form.option) == form
