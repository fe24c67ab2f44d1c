"""What errors cost is seen on a text, kind by kind and stretch by stretch of depth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from llm.checkpoints import write_random_network
from llm.test_convert import Silence
from llm.test_graph import tokens

from edgebuild.llm.checkpoint import load_checkpoint
from edgebuild.llm.forward import Forward
from edgebuild.llm.importance import Importances
from edgebuild.llm.network import read_network
from edgebuild.llm.sensitivity import COARSE, Reference, sensitivities
from edgebuild.llm.sites import survey
from edgebuild.vocabulary.weight_format import WeightFormat


def forward_of(folder: Path) -> Forward:
    checkpoint = load_checkpoint(folder)
    return Forward(checkpoint, read_network(checkpoint))


def test_what_adds_next_to_nothing_costs_next_to_nothing(tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    model = write_random_network(tmp_path, "llama", **sizes)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1e-3)
    model.save_pretrained(tmp_path)
    forward = forward_of(tmp_path)
    importances = Importances(forward.checkpoint)
    sites = survey(forward.checkpoint, importances, Silence())
    found = sensitivities(Reference(forward, tokens()), importances, Silence())
    assert found.keys() == {name for site in sites for name in site.names}
    assert min(found.values()) > 0
    down = [found[f"model.layers.{layer}.mlp.down_proj.weight"] for layer in range(4)]
    assert down[0] < 0.01 * min(down[1:])


def test_tables_are_measured_in_blocks_that_divide_their_rows(tmp_path: Path) -> None:
    sizes = {"hidden_size": 96, "intermediate_size": 256, "head_dim": 32}
    write_random_network(tmp_path, "llama", **sizes, tie_word_embeddings=True)
    forward = forward_of(tmp_path)
    importances = Importances(forward.checkpoint)
    found = sensitivities(Reference(forward, tokens()), importances, Silence())
    others = [cost for name, cost in found.items() if "layers" in name]
    # It is the head, too: what errs there is what is said.
    assert found["model.embed_tokens.weight"] > 2 * np.median(others)


def test_rounded_matrices_are_those_of_the_runtime(tmp_path: Path) -> None:
    write_random_network(tmp_path, "llama")
    forward, ids = forward_of(tmp_path), tokens()
    name = "model.layers.1.mlp.up_proj.weight"
    plain = forward.states(ids, Silence())
    off = {}
    for layout in (WeightFormat.parse("int8-g32"), COARSE[0]):
        rounded = replace(forward, rounded={name: layout})
        off[layout.bits] = np.abs(rounded.states(ids, Silence()) - plain).max()
    assert 0 < off[8] < 0.2 * off[4]
