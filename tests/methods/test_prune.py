"""Channels, heads and blocks go for good, together with all that is coupled to them."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch_pruning as tp
from hypothesis import given, settings
from hypothesis import strategies as st
from small_build import workload_of
from torch import Tensor, nn
from torch.nn import functional
from zoo import ZOO, samples

from edgebuild import Workload
from edgebuild.methods._blocks import Skip
from edgebuild.methods._channel_coupling import find_coupled
from edgebuild.methods._channel_groups import ChannelGroup
from edgebuild.methods._channel_readers import readers
from edgebuild.methods._channel_runs import rows_of
from edgebuild.methods._prune_anatomy import anatomy
from edgebuild.methods._prune_attention import NarrowAttention, join_again, spell_out
from edgebuild.methods._prune_importance import CRITERIA, Criterion
from edgebuild.methods._prune_moments import second_moments
from edgebuild.methods._prune_widths import units_kept
from edgebuild.methods.prune import Prune
from edgebuild.vocabulary.errors import MethodFailed
from edgebuild.vocabulary.offer import Choice, Offer, Part, PartKind
from edgebuild.vocabulary.target import Activations, RuntimeFacts

SKIP = Choice("prune", "skip")
IMAGE = torch.zeros(1, 3, 8, 8)
TOKENS = torch.zeros(1, 6, 32)


# --- networks -------------------------------------------------------------------------------


class Joined(nn.Module):
    """A shortcut around two convolutions, a concatenation, and a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(
            nn.Conv2d(8, 16, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, groups=16),
            nn.Conv2d(16, 8, 1),
        )
        self.side = nn.Conv2d(3, 4, 3, padding=1)
        self.join = nn.Conv2d(12, 4, 3, 4)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        stem = self.stem(image).relu()
        joined = torch.cat((stem + self.body(stem), self.side(image).relu()), dim=1)
        return self.head(self.join(joined).relu().flatten(1))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """A layer around which there is a shortcut."""

    def __init__(self, inner: nn.Module, width: int = 32) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.inner(self.norm(tokens))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention whose query, key and value are one layer, cut apart in different ways."""

    def __init__(self, cut: Callable[[Tensor, int], list[Tensor]]) -> None:
        super().__init__()
        self.num_heads, self.cut = 4, cut
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.cut(self.qkv(tokens), self.num_heads)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Pair(nn.Module):
    """A layer and its activation, without a shortcut around them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, value: Tensor) -> Tensor:
        return self.inner(value).relu()  # type: ignore[no-any-return]


def _unbound(packed: Tensor, heads: int) -> list[Tensor]:
    return list(packed.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0))


def _indexed(packed: Tensor, heads: int) -> list[Tensor]:
    parts = packed.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return [parts[0], parts[1], parts[2]]


def _chunked(packed: Tensor, heads: int) -> list[Tensor]:
    return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in packed.chunk(3, dim=-1)]


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, value: Tensor) -> Tensor:
        return self.function(value)


def _workload(network: nn.Module, example: Tensor, count: int = 24) -> Workload:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(example.shape, generator=generator) for _ in range(count)]
    return workload_of(network, example, rows, rows[:2])


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def _joined() -> Workload:
    return _workload(_seeded(Joined), IMAGE)


def _zoo(name: str) -> Workload:
    specimen = ZOO[name]()
    rows = samples(specimen, 16, seed=0)
    return Workload(name, specimen.network, specimen.example, rows, rows, ())


def _runtime(multiple: int = 1) -> RuntimeFacts:
    return RuntimeFacts("onnxruntime", "any", 1, Activations.UINT8, multiple, {})


def _offers(workload: Workload, multiple: int = 1, **settings: object) -> list[Offer]:
    return list(Prune(**settings).offers(workload, _runtime(multiple)))  # type: ignore[arg-type]


def _options(workload: Workload, path: str, multiple: int = 1) -> list[str]:
    offers = _offers(workload, multiple)
    return [offer.choice.option for offer in offers if offer.part == _channels(path)]


def _channels(path: str) -> Part:
    return Part(path, PartKind.CHANNELS)


def _block(path: str) -> Part:
    return Part(path, PartKind.BLOCK)


def _keep(option: str) -> Choice:
    return Choice("prune", f"keep {option}")


def _parts(workload: Workload) -> set[str]:
    return {offer.part.path for offer in _offers(workload)}


def _answers(network: nn.Module, workload: Workload) -> Tensor:
    rows = [inputs for inputs, _ in workload.calibration]  # type: ignore[union-attr]
    tensors = [row if isinstance(row, Tensor) else row[0] for row in rows]
    with torch.no_grad():
        return network(torch.cat(tensors))  # type: ignore[no-any-return]


# --- offers ---------------------------------------------------------------------------------


def test_a_group_is_offered_with_every_layer_that_changes() -> None:
    offers = {offer.part.path: offer for offer in _offers(_joined(), shares=(0.5,))}
    assert set(offers) == {"stem", "body.0", "side", "join"}
    assert offers["stem"].choice == _keep("4 of 8")
    assert offers["stem"].outputs == {"stem": 4, "body.4": 4}
    assert offers["stem"].inputs == {"body.0": 4, "join": 8}
    # A depthwise convolution reads and puts out what it passes on.
    assert offers["body.0"].outputs == {"body.0": 8, "body.3": 8}
    assert offers["body.0"].inputs == {"body.3": 8, "body.4": 8}
    # A concatenation loses this part alone; a flattened map of 2 x 2 loses all its pixels.
    assert (offers["side"].outputs, offers["side"].inputs) == ({"side": 2}, {"join": 10})
    assert (offers["join"].outputs, offers["join"].inputs) == ({"join": 2}, {"head": 8})


def test_widths_are_multiples_of_what_kernels_work_on() -> None:
    assert _options(_joined(), "body.0", multiple=4) == [
        "keep 12 of 16",
        "keep 8 of 16",
        "keep 4 of 16",
        "keep 2 of 16",
    ]


def test_widths_below_a_multiple_are_powers_of_two() -> None:
    assert _options(_joined(), "stem", multiple=8) == ["keep 4 of 8", "keep 2 of 8", "keep 1 of 8"]


@settings(max_examples=60)
@given(
    units=st.integers(2, 200),
    each=st.integers(1, 9),
    multiple=st.sampled_from([1, 2, 4, 8, 16, 32]),
    shares=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=9),
)
def test_some_units_are_kept_and_some_go(
    units: int, each: int, multiple: int, shares: list[float]
) -> None:
    group = ChannelGroup("path", units * each, units, ())
    found = units_kept(group, shares, multiple)
    assert found == sorted(set(found), reverse=True)
    assert all(0 < kept < units for kept in found)
    if each == 1:
        assert all(
            kept % multiple == 0 or (kept < multiple and kept & (kept - 1) == 0) for kept in found
        )


@pytest.mark.parametrize(
    ("name", "path", "module"),
    [
        ("vit", "blocks.0.attention.in_proj", "blocks.0.attention"),
        ("bert", "layers.0.query", "layers.0"),
    ],
)
def test_heads_are_offered_whole(name: str, path: str, module: str) -> None:
    workload = _zoo(name)
    assert _options(workload, path) == [
        "keep 3 of 4 heads",
        "keep 2 of 4 heads",
        "keep 1 of 4 heads",
    ]
    changed = Prune().apply(workload.network, {_channels(path): _keep("3 of 4 heads")}, workload)
    owner = changed.get_submodule(module)
    assert (getattr(owner, "num_heads", None) or owner.heads) == 3


def test_packed_attention_loses_rows_of_query_key_and_value() -> None:
    offer = next(
        o
        for o in _offers(_zoo("vit"), shares=(0.5,))
        if o.part.path.endswith("0.attention.in_proj")
    )
    assert offer.outputs == {"blocks.0.attention.in_proj": 96}
    assert offer.inputs == {"blocks.0.attention.out_proj": 32}


@pytest.mark.parametrize("cut", [_unbound, _indexed, _chunked])
def test_one_layer_for_query_key_and_value_loses_heads(
    cut: Callable[[Tensor, int], list[Tensor]],
) -> None:
    network = _seeded(lambda: nn.Sequential(Residual(Attention(cut)), nn.Linear(32, 3)))
    offers = [
        o
        for o in _offers(_workload(network, TOKENS), shares=(0.5,))
        if o.part.path == "0.inner.qkv"
    ]
    assert [offer.choice for offer in offers] == [_keep("2 of 4 heads")]
    assert offers[0].outputs == {"0.inner.qkv": 48}
    assert offers[0].inputs == {"0.inner.out": 16}


def test_outputs_stay_and_what_is_added_to_an_input_too() -> None:
    network = _seeded(lambda: nn.Sequential(Residual(nn.Linear(32, 32)), nn.Linear(32, 3)))
    workload = _workload(network, TOKENS)
    assert {part for part in _parts(workload) if part != "0"} == set()
    assert set(Prune().declined(workload, _runtime())) == {"0.inner", "1"}


def test_boxes_and_scores_of_a_detector_keep_their_channels() -> None:
    workload = _zoo("ssdlite")
    assert {"boxes.0.3", "scores.0.3"} <= set(Prune().declined(workload, _runtime()))
    assert not any(part.startswith(("boxes", "scores")) for part in _parts(workload))


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_nothing_of_a_recurrent_network_is_offered(name: str) -> None:
    assert _offers(_zoo(name)) == []


def test_channels_that_a_recurrent_layer_reads_stay() -> None:
    class Series(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layer = nn.Linear(4, 8), nn.GRU(8, 8, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, series: Tensor) -> Tensor:
            return self.head(self.layer(self.embed(series))[0][:, -1])  # type: ignore[no-any-return]

    assert _offers(_workload(_seeded(Series), torch.zeros(1, 5, 4))) == []


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_what_a_recurrent_layer_reads_through_a_transpose_is_named(kind: type[nn.RNNBase]) -> None:
    class Sound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv1d(3, 8, 3), nn.Conv1d(8, 16, 3)
            self.layer, self.head = kind(16, 12, batch_first=True), nn.Linear(12, 4)

        def forward(self, sound: Tensor) -> Tensor:
            found = self.second(self.first(sound).relu()).relu()
            return self.head(self.layer(found.transpose(1, 2))[0][:, -1])  # type: ignore[no-any-return]

    workload = _workload(_seeded(Sound), torch.zeros(1, 3, 20))
    reason = Prune().declined(workload, _runtime())["second"]
    assert "layer" in reason
    assert kind.__name__ in reason
    assert "Error" not in reason
    assert _parts(workload) == {"first"}


def test_a_walk_that_is_given_up_warns_of_nothing() -> None:
    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stems = nn.ModuleList(nn.Conv1d(8, 8, 3, padding=1) for _ in range(4))
            self.layer, self.head = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, sound: Tensor) -> Tensor:
            for stem in self.stems:
                sound = sound + stem(sound).relu()
            return self.head(self.layer(sound.transpose(1, 2))[0].flatten(1)[:, :8])  # type: ignore[no-any-return]

    network, example = _seeded(Long), torch.zeros(1, 8, 100)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        _, declined = find_coupled(network, (example,))
    assert warned == []
    assert "layer (GRU)" in declined["stems.0"]


def test_channels_are_read_by_the_first_layers_with_weights_that_they_reach() -> None:
    assert readers(_joined().network, _joined().example, "side") == ["join"]
    assert readers(_joined().network, _joined().example, "stem") == ["body.0", "join"]
    assert readers(_joined().network, _joined().example, "head") == []


def test_a_network_without_layers_offers_nothing() -> None:
    workload = _workload(nn.Sequential(nn.ReLU()), torch.zeros(1, 4))
    assert _offers(workload) == []


def test_a_network_that_cannot_be_traced_offers_nothing_and_says_why() -> None:
    class Refusing(nn.Linear):
        def forward(self, value: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                raise RuntimeError("no gradients, please")
            return super().forward(value)

    workload = _workload(Refusing(4, 4), torch.zeros(1, 4))
    assert _offers(workload) == []
    reason = "the network cannot be followed, by RuntimeError: no gradients, please"
    assert Prune().declined(workload, _runtime()) == {"": reason}
    with pytest.raises(MethodFailed, match="no gradients, please"):
        Prune().apply(workload.network, {_channels("x"): _keep("1 of 4")}, workload)


def test_a_group_that_cannot_be_followed_does_not_keep_others_from_being_offered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    follow = tp.DependencyGraph.get_pruning_group

    def failing(graph: Any, module: nn.Module, *rest: Any) -> Any:
        if isinstance(module, nn.Conv2d) and module.in_channels == 3 and module.out_channels == 4:
            raise IndexError("lost the way")
        return follow(graph, module, *rest)

    monkeypatch.setattr(tp.DependencyGraph, "get_pruning_group", failing)
    workload = _joined()
    assert _parts(workload) == {"stem", "body.0", "join"}
    reason = "cannot follow its channels into join (Conv2d)"
    assert Prune().declined(workload, _runtime())["side"] == reason


def test_couplings_without_an_end_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(tp.dependency.group.Group):  # type: ignore[misc]
        def has_pruning_op(self, dep: Any, idxs: Any) -> bool:
            return False

    monkeypatch.setattr(tp.dependency.group, "Group", Forgetful)
    assert Prune().declined(_joined(), _runtime())["stem"] == "its couplings have no end"


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: x.softmax(dim=-1),
        lambda x: functional.normalize(x, dim=-1),
        lambda x: x.cumsum(dim=-1),
    ],
    ids=["softmax", "normalize", "cumsum"],
)
def test_channels_that_are_mixed_without_weights_stay(mixed: Callable[[Tensor], Tensor]) -> None:
    network = _seeded(lambda: nn.Sequential(nn.Linear(6, 16), Lambda(mixed), nn.Linear(16, 3)))
    workload = _workload(network, torch.zeros(1, 6))
    assert _offers(workload) == []
    assert "not understood" in Prune().declined(workload, _runtime())["0"]


def test_shuffled_channels_stay_but_a_pixel_shuffle_is_seen_through() -> None:
    def shuffled(image: Tensor) -> Tensor:
        return image.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)

    layers = [
        nn.Conv2d(3, 16, 1),
        Lambda(shuffled),
        nn.Conv2d(16, 8, 1, groups=4),
        nn.Conv2d(8, 4, 1),
    ]
    workload = _workload(_seeded(lambda: nn.Sequential(*copy.deepcopy(layers))), IMAGE)
    assert "0" not in _parts(workload)
    enlarged = nn.Sequential(nn.Conv2d(3, 32, 1), nn.PixelShuffle(2), nn.Conv2d(8, 4, 1))
    offer = next(
        o for o in _offers(_workload(enlarged, IMAGE), shares=(0.5,)) if o.part.path == "0"
    )
    assert (offer.outputs, offer.inputs) == ({"0": 16}, {"2": 4})


def test_groups_of_convolutions_and_norms_stay_equally_large() -> None:
    layers = [
        nn.Conv2d(3, 16, 1),
        nn.GroupNorm(4, 16),
        nn.Conv2d(16, 16, 3, groups=2),
        nn.PReLU(16),
        nn.Conv2d(16, 4, 1),
    ]
    workload = _workload(nn.Sequential(*layers), IMAGE)
    assert _options(workload, "0") == ["keep 12 of 16", "keep 8 of 16", "keep 4 of 16"]
    changed = Prune().apply(workload.network, {_channels("0"): _keep("8 of 16")}, workload)
    assert (changed[1].num_groups, changed[1].num_channels) == (4, 8)
    assert (changed[2].groups, changed[2].in_channels) == (2, 8)


def test_both_halves_of_a_gated_layer_go_together() -> None:
    gate = nn.Sequential(nn.Linear(6, 16), nn.GLU(dim=-1), nn.Linear(8, 3))
    offer = next(o for o in _offers(_workload(gate, torch.zeros(1, 2, 6)), shares=(0.5,)))
    assert (offer.choice, offer.outputs, offer.inputs) == (_keep("4 of 8"), {"0": 8}, {"2": 4})


def test_shared_weights_stay_shared() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.first, self.second = (
                nn.Embedding(20, 8),
                nn.Linear(8, 12),
                nn.Linear(12, 8),
            )
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.words.weight

        def forward(self, ids: Tensor) -> Tensor:
            words = self.words(ids)
            return self.head(words + self.second(self.first(words).relu()))  # type: ignore[no-any-return]

    rows = list(torch.arange(60).reshape(10, 1, 6) % 20)
    workload = workload_of(_seeded(Language), rows[0], rows, rows)
    changed = Prune().apply(workload.network, {_channels("words"): _keep("4 of 8")}, workload)
    assert changed.head.weight is changed.words.weight
    assert changed.head.weight.shape == (20, 4)
    assert "share a weight" in Prune().declined(workload, _runtime())["head"]


# --- blocks ---------------------------------------------------------------------------------


def test_blocks_with_a_shortcut_can_be_skipped() -> None:
    workload = _zoo("mobilenet-v2")
    blocks = {o.part.path: o for o in _offers(workload) if o.part.kind is PartKind.BLOCK}
    assert set(blocks) == {"5", "7"}
    assert blocks["5"].removed == {"5.layers.0", "5.layers.3", "5.layers.6"}
    changed = Prune().apply(workload.network, {_block("5"): SKIP}, workload)
    assert isinstance(changed[5], Skip)


def test_layers_in_a_row_without_a_shortcut_are_no_block() -> None:
    network = nn.Sequential(nn.Linear(4, 8), Pair(), Pair(), nn.Linear(8, 2))
    kinds = {offer.part.kind for offer in _offers(_workload(network, torch.zeros(1, 4)))}
    assert kinds == {PartKind.CHANNELS}


def test_layers_in_a_row_inside_of_a_block_are_none_either() -> None:
    block = Residual(nn.Sequential(nn.Linear(32, 8), Pair(), nn.Linear(8, 32)))
    network = nn.Sequential(nn.Linear(32, 32), block, nn.Linear(32, 2))
    blocks = [o.part for o in _offers(_workload(network, TOKENS)) if o.part.kind is PartKind.BLOCK]
    assert blocks == [_block("1")]


def test_a_block_that_is_called_with_a_mask_answers_with_its_first_argument() -> None:
    workload = _zoo("bert")
    changed = Prune().apply(workload.network, {_block("layers.1"): SKIP}, workload)
    with torch.no_grad():
        assert changed(*workload.example).shape == workload.network(*workload.example).shape


def test_layers_that_others_use_too_are_not_removed_with_a_block() -> None:
    shared = nn.Linear(32, 32)
    network = nn.Sequential(nn.Linear(32, 32), Residual(shared), Residual(shared), nn.Linear(32, 2))
    removed = [
        o.removed for o in _offers(_workload(network, TOKENS)) if o.part.kind is PartKind.BLOCK
    ]
    assert removed == [frozenset(), frozenset()]


# --- changes --------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", CRITERIA)
def test_channels_that_say_nothing_go_first(criterion: Criterion) -> None:
    workload = _joined()
    network = workload.network
    with torch.no_grad():
        for layer in (network.stem, network.body[4], network.body[0]):
            layer.weight[1::2] = 0
            if layer.bias is not None:
                layer.bias[1::2] = 0
        network.body[1].bias[1::2] = 0
        network.body[1].running_mean[1::2] = 0
        network.body[3].bias[1::2] = 0
        network.body[4].weight[:, 1::2] = 0
        network.body[0].weight[:, 1::2] = 0
        network.join.weight[:, 1:8:2] = 0
    chosen = {_channels("stem"): _keep("4 of 8"), _channels("body.0"): _keep("8 of 16")}
    changed = Prune(importance=criterion).apply(network, chosen, workload)
    torch.testing.assert_close(
        _answers(changed, workload), _answers(network, workload), rtol=1e-2, atol=1e-2
    )
    assert torch.equal(changed.stem.weight, network.stem.weight[::2])


def test_what_stays_takes_over_what_others_can_tell() -> None:
    network = _seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)))
    with torch.no_grad():
        # The last four say what the first four say, in other words and louder.
        mixture = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
        network[0].weight[4:] = mixture @ network[0].weight[:4]
        network[0].bias[4:] = 3.0
    workload = _workload(network, torch.zeros(1, 6), count=200)
    changed = Prune(samples=200).apply(network, {_channels("0"): _keep("4 of 8")}, workload)
    error = (_answers(changed, workload) - _answers(network, workload)).square().mean()
    assert error < 0.01 * _answers(network, workload).var()


def test_taking_over_beats_cutting_off() -> None:
    workload = _zoo("residual-cnn")
    found = anatomy(workload.network, workload)
    removal = [(group, range(0, group.units, 4)) for group in found.groups.values()]
    plain = found.without(removal)
    rows = rows_of(workload.calibration, 16)
    moments = second_moments(found.network, found.groups.values(), rows)
    refitted = found.without(removal, (), moments)
    wanted = _answers(workload.network, workload)
    errors = [(_answers(one, workload) - wanted).square().mean() for one in (refitted, plain)]
    assert errors[0] < 0.5 * errors[1]


def test_all_parts_change_together_in_any_order_and_the_original_stays() -> None:
    workload = _zoo("u-net")
    chosen = {o.part: o.choice for o in _offers(workload, 4)}
    before = copy.deepcopy(workload.network.state_dict())
    once = Prune().apply(workload.network, chosen, workload)
    again = Prune().apply(workload.network, dict(reversed(chosen.items())), workload)
    assert all(map(torch.equal, once.state_dict().values(), again.state_dict().values()))
    assert all(map(torch.equal, before.values(), workload.network.state_dict().values()))
    assert not any(hasattr(p, "grad") and p.grad is not None for p in once.parameters())


def test_a_pruned_network_can_be_pruned_again() -> None:
    workload = _joined()
    once = Prune().apply(workload.network, {_channels("stem"): _keep("6 of 8")}, workload)
    twice = Prune().apply(once, {_channels("stem"): _keep("2 of 6")}, workload)
    assert twice.stem.out_channels == 2


def test_what_was_learned_of_a_network_is_forgotten_when_it_changes() -> None:
    workload = _workload(
        _seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))), torch.zeros(1, 4)
    )
    chosen = {_channels("0"): _keep("2 of 4")}
    first = Prune().apply(workload.network, chosen, workload)
    with torch.no_grad():
        workload.network[0].weight.mul_(2.0)
    second = Prune().apply(workload.network, chosen, workload)
    assert not torch.equal(first[0].weight, second[0].weight)


def test_weights_that_were_not_trained_stay_so() -> None:
    workload = _joined()
    workload.network.stem.weight.requires_grad_(False)
    changed = Prune().apply(workload.network, {_channels("stem"): _keep("4 of 8")}, workload)
    assert not changed.stem.weight.requires_grad
    assert changed.join.bias.requires_grad


@pytest.mark.parametrize("name", ["vit", "mobilenet-v2"])
def test_a_changed_network_can_be_stored(name: str) -> None:
    workload = _zoo(name)
    chosen = {offer.part: offer.choice for offer in _offers(workload)}
    changed = Prune().apply(workload.network, chosen, workload)
    file = io.BytesIO()
    torch.save(changed, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(_answers(loaded, workload), _answers(changed, workload))


@pytest.mark.parametrize("form", ["batches", "iterable"])
def test_calibration_may_come_in_batches_or_one_by_one(form: str) -> None:
    workload = _joined()
    rows = torch.cat([inputs for inputs, _ in workload.calibration])  # type: ignore[union-attr]
    splits = {
        "batches": [((batch,), None) for batch in rows.split(8)],
        "iterable": dict.fromkeys((row[None], None) for row in rows).keys(),
    }
    other = replace(workload, calibration=splits[form])
    chosen = {_channels("stem"): _keep("4 of 8")}
    one, two = (Prune().apply(workload.network, chosen, data) for data in (workload, other))
    assert torch.equal(one.stem.weight, two.stem.weight)


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "option", "message"),
    [
        (_channels("stm"), "keep 4 of 8", "nothing there can be removed. Did you mean 'stem'?"),
        (_channels("head"), "keep 4 of 5", "the outputs of the network would change"),
        (_channels("stem"), "keep 8 of 8", "there are 8, to be removed 1 at a time"),
        (_channels("stem"), "keep 0 of 8", "there are 8, to be removed 1 at a time"),
        (_channels("stem"), "keep 4 of 9", "there are 8, to be removed 1 at a time"),
        (_channels("stem"), "halve", "choices there read like 'keep 4 of 8'"),
        (_channels("stem"), "keep 4 of 8 heads", "choices there read like 'keep 4 of 8'"),
        (_block("body"), "skip", "block 'body': nothing there can be removed"),
        (Part("", PartKind.NETWORK), "keep 4 of 8", "network '': nothing there can be removed"),
    ],
)  # fmt: skip
def test_what_cannot_be_carried_out_is_refused(part: Part, option: str, message: str) -> None:
    workload = _joined()
    with pytest.raises(MethodFailed) as failure:
        Prune().apply(workload.network, {part: Choice("prune", option)}, workload)
    assert message in str(failure.value)
    assert repr(option) in str(failure.value)


def test_a_block_can_only_be_skipped() -> None:
    workload = _zoo("bert")
    with pytest.raises(MethodFailed, match="cannot 'halve' block 'layers.0', only skip it"):
        Prune().apply(workload.network, {_block("layers.0"): Choice("prune", "halve")}, workload)


# --- attention ------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask", ["none", "padding", "causal", "both", "per-head"])
def test_narrow_attention_computes_what_the_native_one_does(
    batch_first: bool, bias: bool, mask: str
) -> None:
    native = nn.MultiheadAttention(16, 4, bias=bias, batch_first=batch_first).eval()
    holder = nn.Sequential(copy.deepcopy(native))
    spell_out(holder)
    narrow = NarrowAttention(holder[0])  # type: ignore[arg-type]
    query, memory = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    masks: dict[str, Tensor] = {}
    if mask in ("padding", "both"):
        masks["key_padding_mask"] = torch.arange(7).expand(2, 7) >= torch.tensor([[4], [7]])
    if mask in ("causal", "both"):
        masks["attn_mask"] = torch.ones(5, 7, dtype=torch.bool).triu(3)
    if mask == "per-head":
        masks["attn_mask"] = torch.randn(8, 5, 7)
    given = [value if batch_first else value.transpose(0, 1) for value in (query, memory, memory)]
    with torch.no_grad():
        for keywords in ({}, {"need_weights": False}, {"average_attn_weights": False}):
            wanted, got = (one(*given, **masks, **keywords) for one in (native, narrow))
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_attention_that_loses_nothing_becomes_native_again() -> None:
    network = nn.Sequential(nn.MultiheadAttention(16, 4, bias=False, batch_first=True)).eval()
    before = copy.deepcopy(network.state_dict())
    spell_out(network)
    join_again(network)
    assert type(network[0]) is nn.MultiheadAttention
    assert all(map(torch.equal, network.state_dict().values(), before.values()))
    assert not network[0].training


def test_heads_and_channels_of_an_encoder_go_apart_from_each_other() -> None:
    def encoder() -> nn.Module:
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        return nn.Sequential(nn.Linear(32, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 3))

    workload = _workload(_seeded(encoder), TOKENS)
    path = "1.layers.0.self_attn"
    chosen = {
        _channels("0"): _keep("12 of 16"),
        _channels(f"{path}.in_proj"): _keep("1 of 4 heads"),
    }
    changed = Prune().apply(workload.network, chosen, workload)
    attention = changed.get_submodule(path)
    assert attention.in_proj_weight.shape == (12, 12)
    assert attention.out_proj.weight.shape == (12, 4)
    assert (attention.embed_dim, attention.num_heads, attention.head_dim) == (12, 1, 4)
    assert _answers(changed, workload).isfinite().all()
