"""Layers are left out where bytes are so few that this loses less, and only there."""

from __future__ import annotations

import json
from itertools import combinations, product
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
from edgebuild.llm.build import Wanted, build_model
from edgebuild.llm.bundle import verify_model
from edgebuild.llm.convert import convert
from edgebuild.llm.layers import choose_with_layers, without_layers
from edgebuild.llm.mix import Mix
from edgebuild.llm.mixed import CHOICES, Rounding, Site, choose
from edgebuild.llm.sensitivity import Reference
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


@given(
    menus=st.lists(
        st.lists(st.tuples(st.floats(0, 1), st.integers(1, 50)), min_size=1, max_size=2),
        min_size=4,
        max_size=4,
    ),
    costs=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    share=st.floats(0, 1),
)
def test_no_other_layers_and_roundings_lose_less(
    menus: list[list[tuple[float, int]]], costs: list[float], share: float
) -> None:
    layout = CHOICES[0]
    sites = [
        Site(
            (f"model.layers.{at}.mlp.up_proj.weight",),
            tuple(Rounding(layout, loss, size, size) for loss, size in menu),
        )
        for at, menu in enumerate(menus)
    ]
    found = []
    for count in range(3):
        for gone in combinations(range(4), count):
            left = [menu for at, menu in enumerate(menus) if at not in gone]
            for picked in product(*left):
                loss = sum(each for each, _ in picked) + sum(costs[at] for at in gone)
                found.append((sum(size for _, size in picked), loss))
    least, most = min(found)[0], max(found)[0]
    limit = Bytes(round(least + share * (most - least)))
    best = min(loss for size, loss in found if size <= limit)
    chosen = choose(sites, limit, removals=dict(enumerate(costs)))
    assert chosen.loss <= best * 1.011 + 1e-5
    assert len(chosen.removed) <= 2
    assert len(chosen.layouts) + len(chosen.removed) == 4
    with pytest.raises(InvalidQuantity, match="the smallest choices take"):
        choose(sites, Bytes(least - 1), removals=dict(enumerate(costs)))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text"])
def test_what_is_left_computes_as_before(kind: str, tmp_path: Path) -> None:
    """Without the layer that adds nothing, but its window and rotation are others'."""
    forward = forward_of(network(tmp_path, kind, IDLE, sliding_window=4))
    rest = without_layers(forward, [IDLE]).forward
    assert rest.network.windows == tuple(
        window for layer, window in enumerate(forward.network.windows) if layer != IDLE
    )
    whole, left = (one.states(tokens(), Silence()) for one in (forward, rest))
    np.testing.assert_allclose(left, whole, rtol=1e-4, atol=1e-5)
    other = without_layers(forward, [IDLE - 1]).forward.states(tokens(), Silence())
    assert np.abs(other - whole).max() > 0.01


def _sites(bits: dict[str, tuple[float, int]]) -> tuple[Site, ...]:
    roundings = tuple(
        Rounding(WeightFormat.parse(name), loss, size, size) for name, (loss, size) in bits.items()
    )
    return tuple(Site((f"model.layers.{at}.mlp.up_proj.weight",), roundings) for at in range(4))


def test_layers_are_measured_only_where_few_bits_are_left(tmp_path: Path) -> None:
    forward = forward_of(network(tmp_path, idle=IDLE))
    reference = Reference(forward, tokens())
    sites = _sites({"int4-g32-asym": (0.01, 100), "int2-g32-asym": (0.5, 50)})
    for limit, removed in ((400, ()), (399, (IDLE,)), (300, (IDLE,))):
        mixed = choose_with_layers(sites, Bytes(limit), reference, Silence())
        assert mixed.removed == removed
        assert mixed.loss < 0.05
    assert str(mixed) == "3 int4-g32-asym, without layers 2"


def test_layers_cost_together_what_they_were_seen_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that repeat each other can go one by one, and not both."""
    reference = Reference(forward_of(network(tmp_path)), tokens())
    alone = {0: 0.1, 1: 0.1, 2: 0.3, 3: 0.4}

    def divergence(other: Any) -> float:
        names = {tensor.name for tensor in other.checkpoint.tensors.values()}
        gone = [n for n in alone if f"model.layers.{n}.mlp.up_proj.weight" not in names]
        return 5.0 if {0, 1} <= set(gone) else sum(alone[layer] for layer in gone)

    monkeypatch.setattr(reference, "divergence", divergence)
    sites = _sites({"int4-g32-asym": (0.0, 100)})
    mixed = choose_with_layers(sites, Bytes(200), reference, Silence())
    assert len(mixed.removed) == 2
    assert mixed.removed != (0, 1)
    assert divergence(without_layers(reference.forward, mixed.removed).forward) < 1


def test_conversions_without_other_layers_are_others(tmp_path: Path) -> None:
    forward = forward_of(write_checkpoint(tmp_path / "model", TINY | {"num_hidden_layers": 3}))
    out, mix = tmp_path / "out", Mix.parse("int4-g32")
    found = [
        convert(without_layers(forward, [gone]).checkpoint, out, mix, Silence()) for gone in (0, 1)
    ]
    assert found[1].resumed == 0
    assert [each.name for each in found[0].index.entries] == [
        each.name for each in found[1].index.entries
    ]
    first, second = ({each.name: each for each in one.index.entries} for one in found)
    name = "model.layers.0.mlp.up_proj.weight"
    assert first[name].pieces[0].sha256 != second[name].pieces[0].sha256


def test_a_bundle_without_a_layer_is_proven_and_runs(tmp_path: Path) -> None:
    source = network(tmp_path / "model", idle=IDLE)
    write_tokenizer(source)
    text, out = write_text(tmp_path / "words.txt"), tmp_path / "dist"
    wanted = Wanted(context=256, limit=Bytes(64_000), text=text)
    model = build_model(source, load_target("phone-12gb"), out, wanted, Silence())
    assert model.removed == (IDLE,)
    assert {one.layer for one in model.matrices} == {0, 1, 2, None}
    assert all(one.sensitivity is not None for one in model.matrices if one.layer is not None)
    assert any("3 of 4 layers are left: without layers 2" in note for note in model.notes)
    assert model.proof is not None
    assert model.proof.kl < 1
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 3
    decoder = json.loads((out / "genai_config.json").read_text())["model"]["decoder"]
    assert decoder["num_hidden_layers"] == 3
    assert verify_model(out, Silence()) > 5
    assert len(generate.continued(generate.open_decoder(str(out)), [0, 5, 9], 4)) == 4
