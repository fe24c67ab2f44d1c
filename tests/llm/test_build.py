"""From a checkpoint to a bundle that was compared with its network, that talks, and is measured."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from llm.checkpoints import (
    TINY,
    write_checkpoint,
    write_random_network,
    write_text,
    write_tokenizer,
)
from llm.test_convert import Silence

from edgebuild import catalog, generate
from edgebuild.inputs.target_file import load_target
from edgebuild.llm import golden, proof
from edgebuild.llm.bench import Lengths, bench_model
from edgebuild.llm.build import Wanted, build_model
from edgebuild.llm.bundle import FILE, load_model, verify_model
from edgebuild.llm.chat import Conversation
from edgebuild.llm.graph import Logits
from edgebuild.llm.mix import Mix
from edgebuild.llm.store import load_index
from edgebuild.vocabulary.errors import (
    DoesNotFit,
    InputError,
    InvalidBundle,
    InvalidCheckpoint,
    InvalidQuantity,
    NotExportable,
    ParityLost,
)
from edgebuild.vocabulary.language_model import LanguageModel
from edgebuild.vocabulary.units import Bytes
from edgebuild.vocabulary.verdict import Status

CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_random_network(folder, "qwen2", num_hidden_layers=2)
    return write_tokenizer(folder, CHAT)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "words.txt")


def built(source: Path, out: Path, **wanted: object) -> LanguageModel:
    asked = Wanted(**{"context": 256, "weights": Mix.parse("int4-g32"), **wanted})
    return build_model(source, load_target("phone-12gb"), out, asked, Silence())


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "dist"
    built(checkpoint, out, text=text)
    return out


def test_bundle_is_proven_on_text_that_no_choice_saw(bundle: Path) -> None:
    model = load_model(bundle)
    assert model.proof is not None
    assert model.proof.text == "words.txt"
    assert 0 < model.proof.kl < 2
    assert model.proof.perplexity == pytest.approx(model.proof.float_perplexity, rel=0.5)
    assert len(model.proof.answer) == proof.ANSWER
    assert model.scales == "words.txt"
    assert model.verdict.status is Status.PREDICTED
    assert not (bundle / proof.GRAPH).exists()


def test_without_a_text_quality_is_unknown(checkpoint: Path, tmp_path: Path) -> None:
    model = built(checkpoint, tmp_path / "dist")
    assert model.proof is None
    assert "--text" in model.unproven
    assert model.scales == "extremes"


def test_verify_finds_what_was_changed(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "dist"
    built(checkpoint, out)
    assert verify_model(out, Silence()) > 5
    data = bytearray((out / "weights.data").read_bytes())
    data[10] ^= 1
    (out / "weights.data").write_bytes(data)
    with pytest.raises(InvalidBundle, match="was changed since it was built"):
        verify_model(out, Silence())


@pytest.mark.parametrize("change", ["model.onnx", "run.py"])
def test_verify_finds_changed_files(change: str, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "dist"
    built(checkpoint, out)
    (out / change).write_bytes(b"other")
    with pytest.raises(InvalidBundle, match=f"{change} was changed"):
        verify_model(out, Silence())


def test_verify_replays_the_answer_that_was_given_when_it_was_built(
    bundle: Path, checkpoint: Path, tmp_path: Path
) -> None:
    local = catalog.device("local")
    found = golden.replay(bundle, local)
    assert found is not None
    assert found.relative_error < 1e-3
    assert found.runtime.startswith("onnxruntime 1.")
    assert len(json.loads((bundle / generate.GOLDEN).read_text())["steps"]) == golden.STEPS
    built(checkpoint, tmp_path / "dist")
    assert golden.replay(tmp_path / "dist", local) is not None


def test_another_answer_than_the_golden_one_is_no_intact_bundle(
    bundle: Path, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    write_random_network(other, "qwen2", seed=1, num_hidden_layers=2)
    out, local = tmp_path / "dist", catalog.device("local")
    built(write_tokenizer(other, CHAT), out, text=text)
    shutil.copyfile(bundle / generate.GOLDEN, out / generate.GOLDEN)
    with pytest.raises(InvalidBundle, match="the golden logits differ by .* where 0.1 is allowed"):
        golden.replay(out, local)
    (out / generate.GOLDEN).unlink()
    assert golden.replay(out, local) is None


def test_a_golden_answer_keeps_to_a_short_context(checkpoint: Path, tmp_path: Path) -> None:
    built(checkpoint, tmp_path / "dist", context=10)
    found = json.loads((tmp_path / "dist" / generate.GOLDEN).read_text())
    assert len(found["prompt"]) + len(found["steps"]) == 10
    assert golden.replay(tmp_path / "dist", catalog.device("local")) is not None


def test_loader_needs_nothing_of_ours(bundle: Path) -> None:
    words = [sys.executable, "-I", str(bundle / "run.py"), "generate", "--ids", "0,5", "--new", "4"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["ids"]) == 4


def test_prepacked_weights_give_the_same_answer(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "dist"
    built(checkpoint, out)
    plain = generate.continued(generate.Decoder(generate.graph_of(str(out))), [0, 5, 9], 8)
    generate.prepack(str(out))
    prepacked = Path(generate.graph_of(str(out)))
    assert prepacked.parent == out / generate.PREPACKED
    assert generate.continued(generate.Decoder(str(prepacked)), [0, 5, 9], 8) == plain
    assert verify_model(out, Silence()) > 5
    built(checkpoint, out, weights=Mix.parse("int8"))
    assert generate.graph_of(str(out)) == str(out / generate.GRAPH)
    generate.prepack(str(out))
    (out / generate.PREPACKED / generate.STAMP).write_text("another processor")
    assert generate.graph_of(str(out)) == str(out / generate.GRAPH)


def test_rates_are_measured_with_their_bound(bundle: Path) -> None:
    devices = {"local": catalog.device("local"), "dead": catalog.device("ssh://nobody@127.0.0.1:1")}
    found, dead = bench_model(bundle, devices, Lengths((16, 32), 8, 2))
    assert dead.device == "dead"
    assert dead.error
    assert dead.rates is None
    assert found.error == ""
    assert found.rates is not None
    assert [row.test for row in found.rates.rows] == ["pp16", "pp32", "tg8"]
    assert found.rates.decode > 0
    assert found.bandwidth is not None
    assert found.bound == found.bandwidth / found.bytes_per_token
    assert found.is_impossible == (found.rates.decode > found.bound)


def test_a_device_with_too_little_memory_kills_it_and_says_so(bundle: Path) -> None:
    devices = {"small": catalog.device("twin:30MB")}
    (found,) = bench_model(bundle, devices, Lengths((16,), 8, 1))
    if "not enforced" in found.error.lower() or found.rates:
        pytest.skip("no cgroup keeps a limit here")
    assert "the kernel killed it at the limit of 30 MB" in found.error


def test_bench_refuses_more_tokens_than_are_remembered(bundle: Path) -> None:
    with pytest.raises(InvalidQuantity, match="the bundle was built for 256"):
        bench_model(bundle, {"local": catalog.device("local")}, Lengths((250,), 64))


def test_chat_answers_and_remembers(bundle: Path) -> None:
    talk = Conversation.open(bundle, 6)
    first = "".join(talk.answer("the cat sat"))
    assert first == talk.messages[-1]["content"]
    again = Conversation.open(bundle, 6)
    assert "".join(again.answer("the cat sat")) == first
    "".join(talk.answer("by the fire"))
    assert [each["role"] for each in talk.messages] == ["user", "assistant"] * 2
    with pytest.raises(InvalidQuantity, match="begin a new one"):
        "".join(talk.answer("the old town " * 200))


def test_checkpoint_without_a_tokenizer_builds_and_says_so(tmp_path: Path, text: Path) -> None:
    folder = tmp_path / "tiny"
    write_random_network(folder, "llama", num_hidden_layers=1)
    model = built(folder, tmp_path / "dist")
    assert any("no tokenizer.json" in note for note in model.notes)
    with pytest.raises(InvalidBundle, match="nobody can talk to it"):
        Conversation.open(tmp_path / "dist", 8)
    with pytest.raises(InvalidCheckpoint, match=r"has no tokenizer\.json"):
        built(folder, tmp_path / "other", text=text)


def test_text_that_is_too_short_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("the cat sat on the mat")
    with pytest.raises(InputError, match="too short: it has .* tokens, and 512 are needed"):
        built(checkpoint, tmp_path / "dist", text=short)
    assert not (tmp_path / "dist").exists()


def test_what_does_not_fit_is_refused_with_arithmetic(tmp_path: Path) -> None:
    folder = Path(__file__).parent / "configs" / "llama-3-8b.json"
    with pytest.raises(DoesNotFit, match="needs .* = .*; .* leaves an application") as refused:
        build_model(
            folder,
            load_target("phone-12gb"),
            tmp_path / "dist",
            Wanted(8192, Mix.parse("fp16")),
            Silence(),
        )
    assert "fewer bits" in str(refused.value)


def test_heads_that_onnxruntime_cannot_turn_are_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    source = write_checkpoint(tmp_path / "odd", {**TINY, "hidden_size": 96})
    with pytest.raises(NotExportable, match="has heads of 24: .* multiples of 16 alone"):
        built(source, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_a_hopeless_limit_is_refused_before_anything_is_touched(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    built(checkpoint, tmp_path / "dist")
    with pytest.raises(InvalidQuantity, match=r"5 kB are too few for .*: even half of its layers"):
        built(checkpoint, tmp_path / "dist", weights=None, limit=Bytes(5_000), text=text)
    assert load_model(tmp_path / "dist").weights_bytes > 5_000
    assert verify_model(tmp_path / "dist", Silence()) > 5


def test_a_context_that_nobody_asked_for_is_what_the_network_was_made_for(tmp_path: Path) -> None:
    write_random_network(tmp_path / "model", "llama", max_position_embeddings=160)
    assert built(tmp_path / "model", tmp_path / "dist", context=None).context == 160


def test_another_network_is_no_proof(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "MOST_KL", 1e-6)
    with pytest.raises(ParityLost, match="is not the network"):
        built(checkpoint, tmp_path / "dist", text=text)
    assert not (tmp_path / "dist" / FILE).exists()
    assert not (tmp_path / "dist" / f"{Logits.ALL}.onnx").exists()


def test_size_limits_give_each_matrix_its_own_bits(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    model = built(checkpoint, tmp_path / "dist", text=text, limit=60_000)
    entries = load_index(tmp_path / "dist").entries
    assert sum(e.layout.size(*e.shape) for e in entries if len(e.shape) == 2) <= 60_000
    assert len(model.layouts) > 2
    assert model.proof is not None
