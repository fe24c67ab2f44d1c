"""Layers go and feed-forward parts narrow where bytes are so few that this loses less."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llm.checkpoints import (
    TINY,
    write_checkpoint,
    write_random_network,
    write_text,
    write_tokenizer,
)
from llm.test_convert import Silence
from llm.test_graph import tokens
from llm.test_sensitivity import forward_of

from edgebuild import generate
from edgebuild.inputs.target_file import load_target
from edgebuild.llm._kernels_numpy import Floats
from edgebuild.llm.build import Wanted, build_model
from edgebuild.llm.bundle import verify_model
from edgebuild.llm.calibrate import calibrate
from edgebuild.llm.convert import convert
from edgebuild.llm.forward import Forward
from edgebuild.llm.importance import Importances
from edgebuild.llm.limit import Limit
from edgebuild.llm.mix import Mix
from edgebuild.llm.mixed import choose
from edgebuild.llm.reduced import choose_reduced
from edgebuild.llm.reduction import Reduction, reduce
from edgebuild.llm.sensitivity import Reference
from edgebuild.llm.sites import CHOICES, LayerChoice, Rounding, Site, layer_of, survey
from edgebuild.llm.store import DATA
from edgebuild.vocabulary.errors import InvalidQuantity
from edgebuild.vocabulary.units import Bytes
from edgebuild.vocabulary.weight_format import WeightFormat

IDLE = 2


def network(folder: Path, kind: str = "llama", idle: int | None = None, **sizes: Any) -> Path:
    """Four layers, of which an idle one adds nothing to what it reads."""
    model = write_random_network(folder, kind, **sizes)
    if idle is not None:
        layer = model.model.layers[idle]
        with torch.no_grad():
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
        model.save_pretrained(folder)
    return folder


ROUNDING = st.tuples(st.floats(0, 1), st.integers(1, 50))


@given(
    menus=st.lists(st.lists(ROUNDING, min_size=1, max_size=2), min_size=6, max_size=6),
    costs=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=3),
    share=st.floats(0, 1),
)
def test_no_other_layers_widths_and_roundings_lose_less(
    menus: list[list[tuple[float, int]]], costs: list[tuple[float, float]], share: float
) -> None:
    """Of three layers with two matrices each, one of which may be half as wide."""
    layout = CHOICES[0]

    def roundings(menu: list[tuple[float, int]], divided: int = 1) -> tuple[Rounding, ...]:
        return tuple(
            Rounding(layout, loss, -(-size // divided), -(-size // divided)) for loss, size in menu
        )

    sites = []
    for at in range(3):
        mixed, fed = menus[2 * at : 2 * at + 2]
        sites += [
            Site((f"model.layers.{at}.self_attn.q_proj.weight",), roundings(mixed)),
            Site(
                (f"model.layers.{at}.mlp.up_proj.weight",), roundings(fed), {0.5: roundings(fed, 2)}
            ),
        ]
    reductions = {}
    for at, (gone, half) in enumerate(costs):
        reductions |= {LayerChoice(at, 0.0): gone, LayerChoice(at, 0.5): half}
    found = []
    for states in product((1.0, 0.5, 0.0), repeat=3):
        if states.count(0.0) > 1:
            continue
        spent = sum(reductions.get(LayerChoice(at, state), 0.0) for at, state in enumerate(states))
        left = [site.at(states[at // 2]) for at, site in enumerate(sites) if states[at // 2]]
        for picked in product(*left):
            size = sum(each.stored for each in picked)
            found.append((size, spent + sum(each.loss for each in picked)))
    least, most = min(found)[0], max(found)[0]
    limit = Bytes(round(least + share * (most - least)))
    best = min(loss for size, loss in found if size <= limit)
    chosen = choose(sites, Limit(limit), reductions=reductions)
    assert chosen.loss <= best * 1.011 + 1e-5
    gone = [each for each in chosen.reduced if each.goes]
    assert len(gone) <= 1
    assert len(chosen.layouts) == 6 - 2 * len(gone)
    with pytest.raises(InvalidQuantity, match="the smallest choices take"):
        choose(sites, Limit(Bytes(least - 1)), reductions=reductions)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text", "gemma3"])
def test_what_is_left_computes_as_before(kind: str, tmp_path: Path) -> None:
    """Without the layer that adds nothing, but its window and rotation are others'."""
    network(tmp_path, "gemma3_text" if kind == "gemma3" else kind, IDLE, sliding_window=4)
    if kind == "gemma3":
        # One that sees, too: the settings of its text part are a part of all.
        file = tmp_path / "config.json"
        whole = {"model_type": kind, "text_config": json.loads(file.read_text())}
        file.write_text(json.dumps(whole))
    forward = forward_of(tmp_path)
    rest = reduce(forward, Reduction((IDLE,))).forward
    assert rest.network.windows == tuple(
        window for layer, window in enumerate(forward.network.windows) if layer != IDLE
    )
    whole, left = (one.states(tokens(), Silence()) for one in (forward, rest))
    np.testing.assert_allclose(left, whole, rtol=1e-4, atol=1e-5)
    other = reduce(forward, Reduction((IDLE - 1,))).forward.states(tokens(), Silence())
    assert np.abs(other - whole).max() > 0.01


@pytest.mark.parametrize(
    ("kind", "settings"), [("llama", {}), ("llama", {"mlp_bias": True}), ("gemma3_text", {})]
)
def test_channels_that_do_nothing_are_not_missed(
    kind: str, settings: dict[str, bool], tmp_path: Path
) -> None:
    model = write_random_network(tmp_path, kind, **settings)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:, ::2] = 0
    model.save_pretrained(tmp_path)
    forward = forward_of(tmp_path)
    whole = forward.states(tokens(), Silence())
    for first, most in ((1, 1e-5), (0, None)):
        channels = {1: np.arange(first, 160, 2)}
        rest = reduce(forward, Reduction(channels=channels)).forward
        off = np.abs(rest.states(tokens(), Silence()) - whole).max()
        assert off < most if most else off > 0.01
    assert rest.checkpoint.settings["intermediate_size"] == [160, 80, 160, 160]
    tensors = rest.checkpoint.tensors
    held = sum(int(np.prod(each.read_shape)) for each in tensors.values())
    assert rest.checkpoint.decoder.parameters == held
    shapes = {
        name: each.shape for each in rest.checkpoint.decoder.weights for name, _ in each.names()
    }
    for name, tensor in tensors.items():
        assert tensor.read_shape == shapes[name]


def sites_of(forward: Forward, bits: dict[str, float]) -> tuple[Site, ...]:
    """With what each format loses, everywhere alike."""
    choices = [WeightFormat.parse(name) for name in bits]
    found = survey(forward.checkpoint, Importances(forward.checkpoint), Silence(), choices)
    return tuple(
        replace(
            site,
            roundings=tuple(replace(one, loss=bits[str(one.layout)]) for one in site.roundings),
        )
        for site in found
    )


def taken(sites: Sequence[Site], layout: str) -> int:
    return sum(one.stored for site in sites for one in site.roundings if str(one.layout) == layout)


def seen(forward: Forward) -> Mapping[str, Floats]:
    return calibrate(forward, tokens(), Silence()).importances


def test_something_is_taken_out_only_where_few_bits_are_left(tmp_path: Path) -> None:
    forward = forward_of(network(tmp_path, idle=IDLE))
    reference, importances = Reference(forward, tokens()), seen(forward)
    sites = sites_of(forward, {"int4-g32-asym": 0.01, "int2-g32-asym": 0.5})
    whole = taken(sites, "int4-g32-asym")
    for limit, removed in ((whole, ()), (whole - 1, (IDLE,)), (round(0.85 * whole), (IDLE,))):
        mixed, reduction = choose_reduced(
            sites, Limit(Bytes(limit)), reference, importances, Silence()
        )
        assert reduction.removed == removed
        assert not reduction.channels
        assert mixed.loss < 0.4
    assert str(mixed).endswith("int4-g32-asym, without layers 2")


def test_what_is_chosen_costs_together_what_it_was_seen_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers that repeat each other can go one by one, and not both."""
    forward = forward_of(network(tmp_path))
    reference, importances = Reference(forward, tokens()), seen(forward)
    alone = {0: 0.1, 1: 0.1, 2: 0.3, 3: 0.4}

    def divergence(other: Forward) -> float:
        tensors = other.checkpoint.tensors.values()
        if any(tensor.cut.rows is not None for tensor in tensors):
            return 9.0
        left = {layer_of(tensor.name) for tensor in tensors}
        gone = set(alone) - left
        return 5.0 if {0, 1} <= gone else sum(alone[layer] for layer in gone)

    monkeypatch.setattr(reference, "divergence", divergence)
    sites = sites_of(forward, {"int4-g32-asym": 0.0})
    layer = sum(one.stored for site in sites if site.layer == 0 for one in site.roundings)
    limit = Bytes(taken(sites, "int4-g32-asym") - 2 * layer)
    _, reduction = choose_reduced(sites, Limit(limit), reference, importances, Silence())
    assert len(reduction.removed) == 2
    assert reduction.removed != (0, 1)


def test_one_layer_is_not_taken_out(tmp_path: Path) -> None:
    forward = forward_of(network(tmp_path, num_hidden_layers=1))
    sites = sites_of(forward, {"int4-g32-asym": 0.01, "int2-g32-asym": 0.02})
    limit = Bytes(taken(sites, "int4-g32-asym") - 1)
    reference = Reference(forward, tokens())
    _, reduction = choose_reduced(sites, Limit(limit), reference, seen(forward), Silence())
    assert not reduction.removed


def test_nothing_is_taken_out_where_that_costs_more(tmp_path: Path) -> None:
    """Layers that are all needed, and two bits that lose next to nothing."""
    forward = forward_of(network(tmp_path))
    sites = sites_of(forward, {"int4-g32-asym": 0.0, "int2-g32-asym": 1e-9})
    limit = Bytes(taken(sites, "int4-g32-asym") - 1)
    reference = Reference(forward, tokens())
    mixed, reduction = choose_reduced(sites, Limit(limit), reference, seen(forward), Silence())
    assert not reduction
    assert not mixed.reduced


def test_conversions_without_other_layers_are_others(tmp_path: Path) -> None:
    forward = forward_of(write_checkpoint(tmp_path / "model", TINY | {"num_hidden_layers": 3}))
    out, mix = tmp_path / "out", Mix.parse("int4-g32")
    found = [
        convert(reduce(forward, Reduction((gone,))).checkpoint, out, mix, Silence())
        for gone in (0, 1)
    ]
    assert found[1].resumed == 0
    assert [each.name for each in found[0].index.entries] == [
        each.name for each in found[1].index.entries
    ]
    first, second = ({each.name: each for each in one.index.entries} for one in found)
    name = "model.layers.0.mlp.up_proj.weight"
    assert first[name].pieces[0].sha256 != second[name].pieces[0].sha256


@pytest.mark.parametrize("is_idle", [True, False], ids=["a layer", "half of the channels"])
def test_a_bundle_of_what_is_left_is_proven_and_runs(is_idle: bool, tmp_path: Path) -> None:
    model = write_random_network(tmp_path / "model", "llama")
    with torch.no_grad():
        idle = model.model.layers[IDLE]
        if is_idle:
            idle.self_attn.o_proj.weight.zero_()
        for layer in [idle] if is_idle else model.model.layers:
            layer.mlp.down_proj.weight[:, :: 1 if is_idle else 2] = 0
    model.save_pretrained(tmp_path / "model")
    source = write_tokenizer(tmp_path / "model")
    text, out = write_text(tmp_path / "words.txt"), tmp_path / "dist"
    wanted = Wanted(context=256, limit=Bytes(134_000), text=text)
    built = build_model(source, load_target("phone-12gb"), out, wanted, Silence())
    assert built.removed == ((IDLE,) if is_idle else ())
    assert (set(built.narrowed.values()) == {96}) == (not is_idle)
    assert any("taking something out" in note for note in built.notes)
    assert {one.layer for one in built.matrices} == {None, *range(4 - len(built.removed))}
    assert all(one.sensitivity is not None for one in built.matrices if one.layer is not None)
    size = sum((out / name).stat().st_size for name in (DATA, generate.GRAPH))
    assert 110_000 < size <= 134_000
    assert built.proof is not None
    assert built.proof.kl < 1
    settings = json.loads((out / "config.json").read_text())
    assert settings["num_hidden_layers"] == 4 - len(built.removed)
    decoder = json.loads((out / "genai_config.json").read_text())["model"]["decoder"]
    assert decoder["num_hidden_layers"] == 4 - len(built.removed)
    assert verify_model(out, Silence()) > 5
    assert len(generate.continued(generate.open_decoder(str(out)), [0, 5, 9], 4)) == 4
