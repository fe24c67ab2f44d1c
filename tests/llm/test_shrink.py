"""What is pruned is an ordinary checkpoint, keeps what counts, and learns to be what it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llm.checkpoints import (
    WORDS,
    write_checkpoint,
    write_random_network,
    write_tokenizer,
)
from llm.test_gguf import write_gguf
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from edgebuild.cli import app
from edgebuild.llm import recover
from edgebuild.llm import shrink as shrinking
from edgebuild.llm.calibrate import calibrate
from edgebuild.llm.checkpoint import load_checkpoint
from edgebuild.llm.corpus import read_corpus
from edgebuild.llm.forward import Forward
from edgebuild.llm.proof import distance
from edgebuild.llm.prune import (
    Counts,
    Kept,
    Shares,
    Subject,
    choose_kept,
    count_kept,
    open_subject,
    write_pruned,
)
from edgebuild.llm.recover import Effort
from edgebuild.llm.shrink import FILE, shrink
from edgebuild.llm.source import open_source
from edgebuild.llm.text import open_tokenizer
from edgebuild.vocabulary.errors import (
    InputError,
    InvalidCheckpoint,
    InvalidDestination,
    InvalidQuantity,
    MissingPackage,
)
from edgebuild.vocabulary.language_model import Sizes
from edgebuild.vocabulary.silence import Silence

HALF = Shares(ffn=0.5, heads=0.5, layers=0.5)
NO_STEPS = Effort(steps=0)
FEW_STEPS = Effort(steps=40, batch=4, learning_rate=2e-3)


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Tiny networks only."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence again and again; every tenth word is followed by another one than usual."""
    drawn, words = np.random.default_rng(0), WORDS.split()
    jumps = np.where(drawn.random(6000) < 0.1, drawn.integers(len(words), size=6000), 1)
    file = tmp_path_factory.mktemp("text") / "words.txt"
    file.write_text(" ".join(words[at % len(words)] for at in np.cumsum(jumps)))
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A small network that has learned which tokens follow each other in the text."""
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    model = write_random_network(folder, "llama", num_hidden_layers=4)
    write_tokenizer(folder)
    tokens = open_tokenizer(folder).tokens(text.read_text())  # type: ignore[union-attr]
    rows = torch.tensor(tokens[: len(tokens) // 64 * 64]).reshape(-1, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(120):
        some = rows[torch.arange(8 * step, 8 * step + 8) % len(rows)]
        optimizer.zero_grad()
        model(input_ids=some, labels=some).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


def subject(folder: Path) -> Subject:
    return open_subject(load_checkpoint(folder))


def forward(folder: Path) -> Forward:
    one = subject(folder)
    return Forward(one.checkpoint, one.network)


def kept(folder: Path, text: Path, counts: Counts) -> Kept:
    corpus = read_corpus(text, open_tokenizer(folder), folder, 256)
    seen = calibrate(forward(folder), corpus.calibrating, Silence())
    return choose_kept(subject(folder), seen, counts)


def divergence(one: Path, other: Path, text: Path) -> float:
    """Nats a token on the part of the text that no choice sees."""
    corpus = read_corpus(text, open_tokenizer(other), other, 256)
    states = forward(other).states(corpus.proving, Silence())
    words = (corpus.name, corpus.proving, states, Silence())
    return distance(forward(one), forward(other), *words).kl


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 32},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32},
    "gemma3_text": {"head_dim": 32, "sliding_window": 16, "layer_types": None},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_checkpoint_is_an_ordinary_one(family: str, text: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder, out = tmp_path / "tiny", tmp_path / "small"
    settings = FAMILIES[family]
    if "layer_types" in settings:
        kinds = ["sliding_attention", "full_attention"] * 2
        settings = settings | {"layer_types": kinds}
    write_random_network(folder, family, **settings)
    write_tokenizer(folder)
    found = shrink(folder, out, text, HALF, NO_STEPS, Silence())
    assert found is not None
    assert found.before.layers == 4
    assert found.after == Sizes(2, 2, 1, 96, found.after.parameters)
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert not (tmp_path / "small.part").exists()
    read = open_source(out)
    assert read.decoder.parameters == found.after.parameters
    model, report = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert sum(weight.numel() for weight in model.parameters()) == found.after.parameters
    tokens = torch.arange(2, 66).reshape(2, 32)
    with torch.no_grad():
        theirs = model(input_ids=tokens).logits.numpy()
    ours = forward(out)
    states = ours.states(tokens.numpy(), Silence())
    np.testing.assert_allclose(ours.logits(states), theirs, rtol=1e-3, atol=2e-3)


def test_weights_that_stay_are_those_of_the_original(trained: Path, tmp_path: Path) -> None:
    one = subject(trained)
    some = Kept(
        (1, 3), *({1: np.array(a), 3: np.array(b)} for a, b in (([0, 5], [7, 8]), ([1], [0])))
    )
    write_pruned(one, some, tmp_path / "small", Silence())
    old = load_file(trained / "model.safetensors")
    new = load_file(tmp_path / "small" / "model.safetensors")
    before, after = "model.layers.3.", "model.layers.1."
    assert torch.equal(
        new[f"{after}mlp.up_proj.weight"], old[f"{before}mlp.up_proj.weight"][[7, 8]]
    )
    down = old[f"{before}mlp.down_proj.weight"][:, [7, 8]]
    assert torch.equal(new[f"{after}mlp.down_proj.weight"], down)
    # Four heads of sixteen in two groups: the first group are heads 0 and 1.
    queries = old[f"{before}self_attn.q_proj.weight"][:32]
    assert torch.equal(new[f"{after}self_attn.q_proj.weight"], queries)
    values = old["model.layers.1.self_attn.v_proj.weight"][16:32]
    assert torch.equal(new["model.layers.0.self_attn.v_proj.weight"], values)
    outputs = old["model.layers.1.self_attn.o_proj.weight"][:, 32:]
    assert torch.equal(new["model.layers.0.self_attn.o_proj.weight"], outputs)


def test_what_does_nothing_goes_first(text: Path, tmp_path: Path) -> None:
    """Channels, heads and layers that nobody listens to are found, however loud they are."""
    folder, out = tmp_path / "tiny", tmp_path / "small"
    write_random_network(folder, "llama", num_hidden_layers=4)
    write_tokenizer(folder)
    tensors = load_file(folder / "model.safetensors")
    drawn = torch.Generator().manual_seed(1)
    for layer in range(4):
        at = f"model.layers.{layer}."
        idle = torch.randperm(160, generator=drawn)[:64]
        tensors[f"{at}mlp.down_proj.weight"][:, idle] = 0
        tensors[f"{at}mlp.up_proj.weight"][idle] *= 10
        group = slice(32 * (layer % 2), 32 * (layer % 2) + 32)
        tensors[f"{at}self_attn.o_proj.weight"][:, group] = 0
        if layer in (0, 2):
            tensors[f"{at}self_attn.o_proj.weight"] *= 0
            tensors[f"{at}mlp.down_proj.weight"] *= 0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    found = shrink(folder, out, text, Shares(0.6, 0.5, 0.5), NO_STEPS, Silence())
    assert found is not None
    assert (found.after.ffn, found.after.cached_heads, found.after.layers) == (96, 1, 2)
    assert found.pruned.kl < 1e-6
    assert found.pruned.agreement == 1


PARTS = {"channels": (160, Counts(4, 2, 64)), "layers": (4, Counts(3, 2, 160))}


@pytest.mark.parametrize("what", PARTS)
def test_important_parts_are_worth_more_than_others(
    what: str, trained: Path, text: Path, tmp_path: Path
) -> None:
    whole, counts = PARTS[what]
    one, best = subject(trained), kept(trained, text, counts)

    def lost(name: str, chosen: Kept) -> float:
        write_pruned(one, chosen, tmp_path / name, Silence())
        return divergence(tmp_path / name, trained, text)

    def otherwise(pick: Callable[[np.ndarray], np.ndarray]) -> Kept:
        if what == "channels":
            channels = {layer: pick(numbers) for layer, numbers in best.channels.items()}
            return Kept(best.layers, channels, best.groups)
        layers = tuple(map(int, pick(np.array(best.layers))))
        everywhere = (np.arange(160), np.arange(2))
        return Kept(layers, *(dict.fromkeys(layers, each) for each in everywhere))

    def least(numbers: np.ndarray) -> np.ndarray:
        rest = np.setdiff1d(np.arange(whole), numbers)
        return np.sort(np.concatenate([rest, numbers])[: len(numbers)])

    def by_chance(numbers: np.ndarray) -> np.ndarray:
        return np.sort(drawn.permutation(whole)[: len(numbers)])

    drawn = np.random.default_rng(0)
    ours = lost("best", best)
    assert ours < lost("least", otherwise(least))
    assert ours < np.mean([lost(str(n), otherwise(by_chance)) for n in range(4)])


def test_distillation_comes_nearer(trained: Path, text: Path, tmp_path: Path) -> None:
    found = shrink(trained, tmp_path / "small", text, HALF, FEW_STEPS, Silence())
    assert found is not None
    assert found.distilled is not None
    assert found.steps == 40
    assert found.distilled.kl < 0.5 * found.pruned.kl
    assert found.distilled.perplexity < found.pruned.perplexity
    assert (
        json.loads((tmp_path / "small" / FILE).read_text())["distilled"]["kl"] == found.distilled.kl
    )
    assert divergence(tmp_path / "small", trained, text) == pytest.approx(found.distilled.kl)


class Cut:
    """Progress that ends like a killed process at a step of the training."""

    def __init__(self, at: int) -> None:
        self.left = at

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Cut | Silence]:
        yield self if title == "Distilling" else Silence()

    def advance(self, note: str = "") -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt

    def say(self, text: str) -> None:
        pass


def test_run_that_was_cut_off_gives_the_same(trained: Path, text: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    shrink(trained, whole, text, HALF, FEW_STEPS, Silence())
    with pytest.raises(KeyboardInterrupt):
        shrink(trained, cut, text, HALF, FEW_STEPS, Cut(25))
    assert not cut.exists()
    assert (tmp_path / "cut.part" / "state.pt").is_file()
    # As a kill in the middle of writing leaves it.
    (tmp_path / "cut.part" / "state.part").write_bytes(b"half")
    pruned = (tmp_path / "cut.part" / "pruned").stat().st_mtime_ns
    with pytest.raises(KeyboardInterrupt):
        shrink(trained, cut, text, HALF, FEW_STEPS, Cut(30))
    assert (tmp_path / "cut.part" / "pruned").stat().st_mtime_ns == pruned
    shrink(trained, cut, text, HALF, FEW_STEPS, Silence())
    for name in ("model.safetensors", "config.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert not (tmp_path / "cut.part").exists()


def test_what_another_release_has_left_half_done_is_begun_anew(
    trained: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        shrink(trained, tmp_path / "cut", text, HALF, FEW_STEPS, Cut(25))
    (tmp_path / "cut.part" / "state.pt").write_bytes(b"of another form")
    monkeypatch.setattr(shrinking, "toolchain", lambda: "another")
    assert shrink(trained, tmp_path / "cut", text, HALF, FEW_STEPS, Silence())


def test_samples_of_a_teacher_are_learned_from(trained: Path, text: Path, tmp_path: Path) -> None:
    words = text.read_text().split()
    pieces = [" ".join(words[at : at + 20]) for at in range(0, len(words), 20)]
    samples = [
        {"number": at, "prompt": piece[:7], "text": piece[7:], "seed": 0}
        for at, piece in enumerate(pieces)
    ]
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    effort = Effort(steps=20, batch=2, learning_rate=2e-3)
    found = shrink(trained, tmp_path / "small", file, HALF, effort, Silence())
    assert found is not None
    assert found.distilled is not None
    assert found.distilled.kl < found.pruned.kl
    file.write_text('{"number": 1}\n')
    with pytest.raises(InputError, match="line 1: no sample"):
        shrink(trained, tmp_path / "other", file, HALF, effort, Silence())


def test_gguf_becomes_a_smaller_checkpoint(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgebuild.llm import save

    config = {
        **{"model_type": "llama", "hidden_size": 64, "intermediate_size": 160},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"vocab_size": 96, "max_position_embeddings": 256},
    }
    write_gguf(tmp_path / "tiny.gguf", "llama", config)
    # The file has no tokenizer that could be rebuilt.
    monkeypatch.setattr(save, "write_beside", lambda checkpoint, folder: write_tokenizer(folder))
    found = shrink(
        tmp_path / "tiny.gguf",
        tmp_path / "small",
        text,
        Shares(ffn=0.6),
        Effort(steps=20, batch=2),
        Silence(),
    )
    assert found is not None
    assert found.after.ffn == 96
    assert open_source(tmp_path / "small").tensors["lm_head.weight"].dtype == "F16"


def test_command_line_shrinks_and_says_how_near_it_is(
    trained: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    words = ["shrink", str(trained), "-o", str(out), "--text", str(text), "--ffn", "0.4"]
    done = CliRunner().invoke(app, [*words, "--steps", "20", "--batch", "2", "--json"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["after"]["ffn"] == 64
    assert found["distilled"]["kl"] < found["pruned"]["kl"]
    assert (out / "model.safetensors").is_file()
    both = CliRunner().invoke(app, [*words, "--steps", "20", "--minutes", "1"])
    assert "give --steps or --minutes, not both" in str(both.exception)


def test_minutes_become_steps_that_fit(
    trained: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recover, "FEWEST_STEPS", 2)
    brief = replace(FEW_STEPS, minutes=0.0)
    found = shrink(trained, tmp_path / "small", text, HALF, brief, Silence())
    assert found is not None
    assert found.steps == 2


def test_two_processes_learn_what_one_does(trained: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    alone, together = tmp_path / "alone", tmp_path / "together"
    effort = Effort(steps=20, batch=4, learning_rate=2e-3)
    one = shrink(trained, alone, text, HALF, effort, Silence())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words = ["--nproc_per_node", "2", str(Path(sys.executable).with_name("edgebuild")), "shrink"]
    words += [str(trained), "-o", str(together), "--text", str(text), "--steps", "20"]
    words += ["--ffn", "0.5", "--heads", "0.5", "--layers", "0.5"]
    done = subprocess.run(
        [*launcher, *words, "--batch", "4", "--learning-rate", "2e-3"],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert one is not None
    assert one.distilled is not None
    two = json.loads((together / FILE).read_text())
    assert two["made_from"] == one.made_from
    assert two["distilled"]["kl"] == pytest.approx(one.distilled.kl, rel=0.02)
    assert two["distilled"]["kl"] < two["pruned"]["kl"]


def test_one_process_needs_no_accelerate(
    trained: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    having = shrink(trained, tmp_path / "having", text, HALF, FEW_STEPS, Silence())
    monkeypatch.setattr(recover.importlib.util, "find_spec", lambda name: None)
    lacking = shrink(trained, tmp_path / "lacking", text, HALF, FEW_STEPS, Silence())
    assert having is not None
    assert lacking is not None
    assert having.distilled is not None
    assert lacking.distilled is not None
    assert lacking.distilled.kl == pytest.approx(having.distilled.kl, rel=1e-3)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_shares_that_are_none_are_refused(share: float) -> None:
    with pytest.raises(InvalidQuantity, match=r"--heads .*: a share is above 0 and at most 1"):
        Shares(heads=share)


def test_bad_input_is_named(trained: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"

    def refused(kind: type[Exception], match: str, **other: Any) -> None:
        asked = {"path": trained, "out": out, "text": text, "shares": HALF, "effort": NO_STEPS}
        with pytest.raises(kind, match=match):
            shrink(**{**asked, **other}, progress=Silence())
        assert not out.exists()
        assert not (tmp_path / "small.part").exists()

    with pytest.raises(InvalidQuantity, match="nothing would go"):
        Shares()
    with pytest.raises(InvalidQuantity, match="--temperature 0: it must be above 0"):
        Effort(temperature=0.0)
    with pytest.raises(InputError, match="leaves all 160 in place, in multiples of 32: give less"):
        count_kept(subject(trained).sizes, Shares(ffn=0.99))
    refused(InputError, "--layers 0.9 leaves all 4 in place", shares=Shares(layers=0.9))
    short = tmp_path / "short.txt"
    short.write_text(WORDS)
    refused(InputError, "is too short: it has .* tokens", text=short)
    refused(InputError, "cannot be read", text=tmp_path / "nothing.txt")
    bare = write_checkpoint(tmp_path / "bare")
    refused(InvalidCheckpoint, r"has no tokenizer\.json", path=bare)
    rounded = write_checkpoint(tmp_path / "rounded")
    config = json.loads((rounded / "config.json").read_text())
    quantized = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (rounded / "config.json").write_text(json.dumps(config | quantized))
    refused(InvalidCheckpoint, "quantized by gptq already: give the floats", path=rounded)
    mixture = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    refused(
        InvalidCheckpoint,
        "mixtral is not pruned",
        path=write_checkpoint(tmp_path / "mixture", config | mixture),
    )


def test_other_content_stays(trained: Path, text: Path, tmp_path: Path) -> None:
    for name in ("out", "other.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    with pytest.raises(InvalidDestination, match="holds something else: give a new folder"):
        shrink(trained, tmp_path / "out", text, HALF, NO_STEPS, Silence())
    with pytest.raises(InvalidDestination, match="where the work is done, holds something else"):
        shrink(trained, tmp_path / "other", text, HALF, NO_STEPS, Silence())
    assert (tmp_path / "other.part" / "notes.txt").read_text() == "mine"


def test_result_is_not_made_twice(trained: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    first = shrink(trained, out, text, HALF, NO_STEPS, Silence())
    made = (out / "model.safetensors").stat().st_mtime_ns
    assert shrink(trained, out, text, HALF, NO_STEPS, Silence()) == first
    assert (out / "model.safetensors").stat().st_mtime_ns == made
    with pytest.raises(InvalidDestination, match="holds something else"):
        shrink(trained, out, text, Shares(ffn=0.5), NO_STEPS, Silence())


def test_missing_transformers_are_named(
    trained: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackage, match=r"pip install 'edgebuild\[hf\]'; or prune alone"):
        shrink(trained, tmp_path / "small", text, HALF, FEW_STEPS, Silence())
    assert shrink(trained, tmp_path / "small", text, HALF, NO_STEPS, Silence()) is not None
