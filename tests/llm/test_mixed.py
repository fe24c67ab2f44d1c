"""Bits by matrix keep the limit, lose no more than anything that chance or one precision finds."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llm.checkpoints import TINY, random_tensors, write_checkpoint
from llm.test_convert import Silence

from edgebuild.llm.checkpoint import load_checkpoint
from edgebuild.llm.convert import convert
from edgebuild.llm.importance import Importances
from edgebuild.llm.limit import Counted, Limit
from edgebuild.llm.mixed import choose
from edgebuild.llm.sites import CHOICES, Rounding, Site, survey, weighed
from edgebuild.llm.store import DATA
from edgebuild.vocabulary.errors import InvalidQuantity
from edgebuild.vocabulary.units import Bytes
from edgebuild.vocabulary.weight_format import WeightFormat

MIXTURE = TINY | {
    **{"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
}
ROUNDINGS = st.builds(
    Rounding, st.sampled_from(CHOICES), st.floats(0, 1), st.integers(1, 50), st.integers(1, 50)
)


@given(
    menus=st.lists(st.lists(ROUNDINGS, min_size=1, max_size=4), min_size=1, max_size=4),
    share=st.floats(0, 1),
    counted=st.sampled_from(Counted),
)
def test_no_other_combination_within_the_limit_loses_less(
    menus: list[list[Rounding]], share: float, counted: Counted
) -> None:
    def taken(picked: tuple[Rounding, ...]) -> int:
        return sum(one.stored if counted is Counted.STORED else one.read for one in picked)

    combinations = list(product(*menus))
    sizes = [taken(picked) for picked in combinations]
    limit = Bytes(round(min(sizes) + share * (max(sizes) - min(sizes))))
    best = min(
        sum(one.loss for one in picked)
        for picked, size in zip(combinations, sizes, strict=True)
        if size <= limit
    )
    sites = [Site((str(at),), tuple(menu)) for at, menu in enumerate(menus)]
    found = choose(sites, Limit(limit, counted))
    assert found.loss <= best * 1.011 + 1e-5
    with pytest.raises(InvalidQuantity, match="the smallest choices take"):
        choose(sites, Limit(Bytes(min(sizes) - 1), counted))


def surveyed(folder: Path, **sensitivities: float) -> tuple[Site, ...]:
    checkpoint = load_checkpoint(folder)
    sites = survey(checkpoint, Importances(checkpoint), Silence(), CHOICES)
    return weighed(sites, {site.names[0]: 1.0 for site in sites} | sensitivities)


def test_more_bits_and_smaller_blocks_lose_less(tmp_path: Path) -> None:
    for site in surveyed(write_checkpoint(tmp_path)):
        by_layout = {str(rounding.layout): rounding for rounding in site.roundings}
        losses = [
            by_layout[name].loss
            for name in ("fp16", "int8-g32", "int4-g32-asym", "int4-g64-asym", "int2-g32-asym")
        ]
        assert losses == sorted(losses)


def test_a_mix_loses_less_than_one_precision_of_its_size(tmp_path: Path) -> None:
    tensors = random_tensors(TINY)
    for name, tensor in tensors.items():
        # Some matrices are easy: nearly all of their weights are of one size.
        if "up_proj" in name or "k_proj" in name:
            tensors[name] = (tensor.sign() * 0.02 + 0.001 * tensor).to(torch.bfloat16)
    sites = surveyed(write_checkpoint(tmp_path, tensors=tensors))
    # Eight bits everywhere lose so little that nothing pays for itself.
    for uniform, share in (("int4-g32-asym", 0.9), ("int4-g64-asym", 0.9), ("int8-g32", 1.0)):
        alike = [next(r for r in s.roundings if str(r.layout) == uniform) for s in sites]
        limit = Bytes(sum(rounding.stored for rounding in alike))
        assert choose(sites, Limit(limit)).loss <= share * sum(rounding.loss for rounding in alike)


def test_what_is_more_sensitive_gets_no_fewer_bits(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    name = "model.layers.0.mlp.down_proj.weight"
    bits = []
    for sensitivity in (0.01, 100.0):
        sites = surveyed(folder, **{name: sensitivity})
        bits.append(choose(sites, Limit(Bytes(60_000))).layouts[name].bits)
    assert bits[0] < bits[1]


def test_experts_of_a_layer_are_stored_alike_and_read_in_part(tmp_path: Path) -> None:
    sites = surveyed(write_checkpoint(tmp_path, MIXTURE))
    experts = [site for site in sites if "experts" in site.names[0]]
    assert {len(site.names) for site in experts} == {4}
    for site in experts:
        for rounding in site.roundings:
            # Two of four, without the gaps between arrays in a file.
            assert 0.9 * rounding.stored < rounding.read * 2 <= rounding.stored
    embedding = next(site for site in sites if site.names[0].endswith("embed_tokens.weight"))
    assert {rounding.read for rounding in embedding.roundings} == {0}
    # Its 64 columns are no whole blocks of 128.
    assert all(rounding.layout.block <= 64 for rounding in embedding.roundings)


def test_a_mix_is_converted_as_it_was_chosen(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_checkpoint(tmp_path / "model", MIXTURE))
    importances = Importances(checkpoint)
    limit = Limit.of(checkpoint.decoder, Bytes(150_000))
    mixed = choose(survey(checkpoint, importances, Silence()), limit)
    assert len(mixed.counts) > 1
    done = convert(checkpoint, tmp_path / "out", mixed, Silence())
    for entry in done.index.entries:
        assert entry.layout == mixed.layouts.get(entry.name, WeightFormat(32))
    # The file itself: with norms and routers, and with the gaps between arrays.
    assert 0.95 * limit.size < (tmp_path / "out" / DATA).stat().st_size <= limit.size
