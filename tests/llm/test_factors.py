"""Two thin matrices stand in for one where that loses less for its bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from llm.checkpoints import write_random_network, write_text, write_tokenizer
from llm.test_convert import Silence
from llm.test_graph import tokens
from llm.test_sensitivity import forward_of

from edgebuild import generate
from edgebuild.inputs.target_file import load_target
from edgebuild.llm import factors
from edgebuild.llm.build import Wanted, build_model
from edgebuild.llm.bundle import verify_model
from edgebuild.llm.calibrate import calibrate
from edgebuild.llm.factors import decompose, factorized, names_of, offered
from edgebuild.llm.forward import Forward
from edgebuild.llm.importance import Importances
from edgebuild.llm.rows import open_rows
from edgebuild.llm.sites import survey
from edgebuild.llm.store import DATA
from edgebuild.vocabulary.units import Bytes

WIDE, TALL = "model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.up_proj.weight"


def matrix(name: str, forward: Forward) -> np.ndarray:
    with open_rows(name, forward.checkpoint.tensors) as rows:
        out = np.empty(rows.shape, np.float32)
        rows.read(0, out)
    return out


@pytest.mark.parametrize("name", [WIDE, TALL])
def test_factors_lose_what_was_told_and_less_than_those_of_plain_weights(
    name: str, tmp_path: Path
) -> None:
    write_random_network(tmp_path, "llama")
    forward = forward_of(tmp_path)
    whole = matrix(name, forward)
    importance = np.geomspace(1e-3, 1, whole.shape[1]).astype(np.float32)
    weighted, plain = (
        decompose(name, forward.checkpoint, each) for each in (importance, np.ones_like(importance))
    )

    def lost(first: np.ndarray, second: np.ndarray) -> float:
        off = np.square(second @ first - whole) * importance
        return float(off.sum() / (np.square(whole) * importance).sum())

    assert lost(*weighted.factors(min(whole.shape))) < 1e-6
    for rank in (8, 32):
        found = weighted.factors(rank)
        assert [each.shape for each in found] == [(rank, whole.shape[1]), (whole.shape[0], rank)]
        assert lost(*found) == pytest.approx(weighted.lost(rank), rel=1e-3)
        assert lost(*found) < lost(*plain.factors(rank))


def test_network_with_factors_computes_their_product(tmp_path: Path) -> None:
    """Qwen's queries have biases, which come after both."""
    model = write_random_network(tmp_path / "model", "qwen2")
    forward, ids = forward_of(tmp_path / "model"), tokens()
    ranks = {"model.layers.0.self_attn.q_proj.weight": 32, TALL: 32}
    importances = calibrate(forward, ids, Silence()).importances
    thin = factorized(forward, ranks, importances, tmp_path / "factors")
    modules = dict(model.named_parameters())
    for name in ranks:
        first, second = (matrix(each, thin) for each in names_of(name))
        with torch.no_grad():
            modules[name].copy_(torch.from_numpy(second @ first))
    model.save_pretrained(tmp_path / "product")
    expected = forward_of(tmp_path / "product").states(ids, Silence())
    np.testing.assert_allclose(thin.states(ids, Silence()), expected, rtol=1e-3, atol=1e-4)
    assert factorized(forward, {}, importances, tmp_path / "none") is forward


def test_factors_are_offered_with_fewer_bytes_than_the_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_random_network(tmp_path, "llama", intermediate_size=512, hidden_size=256, head_dim=64)
    forward = forward_of(tmp_path)
    sites = survey(forward.checkpoint, Importances(forward.checkpoint), Silence())
    importances = calibrate(forward, tokens(), Silence()).importances
    for most in (factors.MOST_ELEMENTS, 256 * 256):
        monkeypatch.setattr(factors, "MOST_ELEMENTS", most)
        for site in offered(sites, forward.checkpoint, importances, Silence()):
            thin = [each for each in site.roundings if each.rank]
            whole = next(
                each for each in site.roundings if each.layout == factors.LAYOUT and not each.rank
            )
            is_large = "mlp" in site.names[0] and most < factors.SHARES[0] * 1e6
            assert bool(thin) == (site.layer is not None and not is_large)
            assert all(each.stored < whole.stored for each in thin)
            losses = [each.loss for each in sorted(thin, key=lambda each: -each.rank)]
            assert losses == sorted(losses)


def test_a_bundle_with_factors_is_proven_and_runs(tmp_path: Path) -> None:
    """Matrices that are products of thin ones take half of the bytes so."""
    model = write_random_network(tmp_path / "model", "llama", intermediate_size=256)
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in model.model.layers:
            for one in (layer.mlp.up_proj, layer.mlp.gate_proj, layer.mlp.down_proj):
                outputs, inputs = one.weight.shape
                thin = [torch.randn(n, 16, generator=drawn) for n in (outputs, inputs)]
                one.weight.copy_(thin[0] @ thin[1].T * 0.03)
    model.save_pretrained(tmp_path / "model")
    source = write_tokenizer(tmp_path / "model")
    text, out = write_text(tmp_path / "words.txt"), tmp_path / "dist"
    wanted = Wanted(context=256, limit=Bytes(170_000), text=text)
    built = build_model(source, load_target("phone-12gb"), out, wanted, Silence())
    assert set(built.ranks.values()) == {32}
    assert all("mlp" in name for name in built.ranks)
    assert any("stored as two thin ones" in note for note in built.notes)
    kinds = {one.kind for one in built.matrices}
    assert {"mlp.up_proj.first", "mlp.up_proj.second"} & kinds
    assert sum((out / name).stat().st_size for name in (DATA, generate.GRAPH)) <= 170_000
    assert built.proof is not None
    assert built.proof.kl < 0.5
    assert verify_model(out, Silence()) > 5
    assert len(generate.continued(generate.open_decoder(str(out)), [0, 5, 9], 4)) == 4
