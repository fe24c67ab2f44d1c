"""A language model for LiteRT: exported once, read back, run, proven, and refused where it must."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from llm.checkpoints import TINY, write_random_network, write_text, write_tokenizer
from llm.test_build import CHAT
from llm.test_convert import Silence
from llm.test_gguf import write_gguf

from edgebuild import catalog, generate
from edgebuild.inputs.target_file import load_target
from edgebuild.llm import golden, proof, save, tflite
from edgebuild.llm._tflite_census import read_matrices
from edgebuild.llm.bench import Lengths, bench_model
from edgebuild.llm.build import Wanted, build_model
from edgebuild.llm.bundle import PAGE, load_model, verify_model
from edgebuild.llm.chat import Conversation
from edgebuild.llm.config import load_decoder
from edgebuild.llm.forward import Forward
from edgebuild.llm.mix import Mix
from edgebuild.llm.network import read_network
from edgebuild.llm.source import open_source
from edgebuild.report.language_model_html import render_html
from edgebuild.vocabulary.errors import (
    DoesNotFit,
    InputError,
    InvalidBundle,
    InvalidCheckpoint,
    InvalidDestination,
    NotExportable,
    ParityLost,
    PrecisionRefused,
)
from edgebuild.vocabulary.language_model import LanguageModel
from edgebuild.vocabulary.units import Bytes

CONTEXT, CHUNK = 160, 128
CONFIGS = Path(__file__).parent / "configs"


def built(source: Path, out: Path, target: str = "phone-12gb", **wanted: object) -> LanguageModel:
    asked = Wanted(**{"context": CONTEXT, "format": "tflite", **wanted})
    return build_model(source, load_target(target), out, asked, Silence(), render_html)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_random_network(folder, "llama", num_hidden_layers=1)
    return write_tokenizer(folder, CHAT)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "words.txt")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One export for all tests: it takes most of their time."""
    out = tmp_path_factory.mktemp("bundle") / "dist"
    built(checkpoint, out, text=text)
    return out


def test_every_matrix_is_four_bits_in_blocks(bundle: Path) -> None:
    matrices = read_matrices(bundle / generate.LITE)
    assert {each.layout for each in matrices} == {"int4-g32"}
    decoded = [each for each in matrices if each.subgraph == "decode"]
    # Seven of the layer, the embedding, the head.
    assert len(decoded) == 9
    assert Counter(each.operator for each in decoded)["EMBEDDING_LOOKUP"] == 1
    model = load_model(bundle)
    assert model.layouts == {"int4-g32": 9}
    assert {each.layout for each in model.matrices} == {"int4-g32"}
    assert "int4-g32" in (bundle / PAGE).read_text()
    weights = sum(each.inputs * each.outputs for each in load_decoder(bundle).weights)
    assert model.read_bytes < weights * 0.5625
    assert model.weights_bytes == (bundle / generate.LITE).stat().st_size


def test_layers_ran_on_integer_kernels(bundle: Path) -> None:
    kernels = load_model(bundle).kernels
    assert sum(kernels.values()) > 0
    assert all("QB4W" in name for name in kernels), kernels


def as_rounded(file: Path) -> dict[tuple[int, ...], list[torch.Tensor]]:
    """The matrices of `decode` as the file says that they are, by shape, in order."""
    model = flatbuffer_utils.read_model(str(file))
    (decode,) = [each for each in model.subgraphs if each.name == b"decode"]
    found: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for operator in decode.operators:
        for number in operator.inputs:
            tensor = decode.tensors[number]
            if number < 0 or tensor.type != schema.TensorType.INT4:
                continue
            rows, columns = map(int, tensor.shape)
            packed = np.asarray(model.buffers[tensor.buffer].data, np.uint8)
            low, high = packed & 15, packed >> 4
            codes = np.stack([low, high], axis=1).reshape(rows, columns).astype(np.int8)
            codes = np.where(codes > 7, codes - 16, codes)
            about = tensor.quantization.details
            scales = model.buffers[decode.tensors[about.scales].buffer].data
            scales = np.frombuffer(bytes(scales), np.float16).reshape(rows, -1).astype(np.float32)
            values = codes * np.repeat(scales, about.blockSize, axis=1)
            found.setdefault((rows, columns), []).append(torch.tensor(values, dtype=torch.float32))
    return found


def test_runtime_computes_what_the_file_says(bundle: Path, checkpoint: Path) -> None:
    """What remains is that activations are rounded to eight bits as they come."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(checkpoint).eval().float()
    stored = as_rounded(bundle / generate.LITE)
    layer = network.model.layers[0]
    attention, feed = layer.self_attn, layer.mlp
    order = [network.model.embed_tokens, attention.q_proj, attention.k_proj, attention.v_proj]
    order += [attention.o_proj, feed.gate_proj, feed.up_proj, feed.down_proj, network.lm_head]
    tokens = np.random.default_rng(0).integers(2, 96, 100).tolist()
    with torch.no_grad():
        plain = network(torch.tensor([tokens])).logits[0].numpy()
        # The file's order among equal shapes need not be the network's: each takes the nearest.
        for module in order:
            alike = stored[tuple(module.weight.shape)]
            distances = [float((one - module.weight).square().mean()) for one in alike]
            module.weight.copy_(alike[int(np.argmin(distances))])
        rounded = network(torch.tensor([tokens])).logits[0].numpy()
    decoder = generate.open_decoder(str(bundle))
    got = np.concatenate([decoder.read([token]) for token in tokens])
    assert np.linalg.norm(got - rounded) < 0.05 * np.linalg.norm(rounded)
    assert np.linalg.norm(got - rounded) < 0.3 * np.linalg.norm(plain - rounded)


def test_prompts_and_single_tokens_give_the_same(bundle: Path) -> None:
    decoder = generate.open_decoder(str(bundle))
    tokens = np.random.default_rng(1).integers(2, 96, CONTEXT).tolist()
    one_by_one = np.concatenate([decoder.read([token]) for token in tokens])
    for begun in (1, 40, CHUNK, CHUNK + 1, CONTEXT - 1):
        decoder.forget()
        decoder.read(tokens[:begun])
        assert np.array_equal(decoder.read(tokens[begun:])[0], one_by_one[-1]), begun
    with pytest.raises(ValueError, match="161 tokens: the model was built for 160"):
        decoder.read([1])


def test_bundle_is_proven_in_its_runtime(bundle: Path, checkpoint: Path) -> None:
    model = load_model(bundle)
    assert model.format == "tflite"
    assert model.minimum_runtime == {"ai-edge-litert": "2.1.0"}
    assert model.proof is not None
    assert 0 < model.proof.kl < 1
    assert model.proof.text == "words.txt"
    assert len(model.proof.answer) == proof.ANSWER
    assert "ai-edge-litert" in model.versions
    assert (bundle / tflite.BUNDLE).is_file()


def test_what_is_no_longer_the_network_is_no_proof(
    bundle: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "MOST_KL", 1e-6)
    source = open_source(checkpoint)
    forward = Forward(source, read_network(source))
    sequences = np.random.default_rng(2).integers(2, 96, (1, 40))
    decoder = proof.EachToken(generate.LiteDecoder(str(bundle / generate.LITE)))
    states = forward.states(sequences, Silence())
    with pytest.raises(ParityLost, match="is not the network"):
        proof.compare(decoder, forward, "words", sequences, states, Silence())


def test_answer_is_that_of_the_bundle(bundle: Path, checkpoint: Path, text: Path) -> None:
    """The proof reads token by token; what users run reads prompts at once."""
    from edgebuild.llm.text import open_tokenizer, read_text

    model, tokenizer = load_model(bundle), open_tokenizer(checkpoint)
    proving = read_text(text, tokenizer, checkpoint, CONTEXT).proving
    prompt = proving[0][: proving.shape[1] // 2].tolist()
    assert model.proof is not None
    decoder = generate.open_decoder(str(bundle))
    assert tuple(generate.continued(decoder, prompt, proof.ANSWER)) == model.proof.answer


def test_loader_needs_nothing_of_ours(bundle: Path) -> None:
    words = [sys.executable, "-I", str(bundle / "run.py"), "generate", "--ids", "0,5", "--new", "4"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["ids"]) == 4
    prepack = [sys.executable, "-I", str(bundle / "run.py"), "prepack"]
    done = subprocess.run(prepack, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "model.tflite is not prepacked" in done.stderr


def test_chat_and_bench_run_it(bundle: Path) -> None:
    talk = Conversation.open(bundle, 6)
    first = "".join(talk.answer("the cat sat"))
    assert first == talk.messages[-1]["content"]
    devices = {"local": catalog.device("local")}
    (found,) = bench_model(bundle, devices, Lengths((16, 140), 8, 2), 1)
    assert found.error == ""
    assert found.rates is not None
    assert [row.test for row in found.rates.rows] == ["pp16", "pp140", "tg8"]
    predicted = load_model(bundle).option.needs.anonymous
    assert found.rates.anonymous == pytest.approx(predicted, rel=0.3)


def test_old_runtimes_are_refused_where_it_runs(bundle: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(bundle, tmp_path / "dist")
    manifest = json.loads((copied / generate.MANIFEST).read_text())
    manifest["minimum_runtime"]["ai-edge-litert"] = "99.0.0"
    (copied / generate.MANIFEST).write_text(json.dumps(manifest))
    words = [sys.executable, "-I", str(copied / "run.py"), "generate", "--ids", "0", "--new", "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "is not known to run this rightly, 99.0.0 is" in done.stderr
    assert "pip install --upgrade ai-edge-litert" in done.stderr


def test_verify_replays_an_answer(bundle: Path) -> None:
    found = golden.replay(bundle, catalog.device("local"))
    assert found is not None
    assert found.relative_error < 1e-3
    assert found.runtime.startswith("ai_edge_litert 2.")


@pytest.mark.parametrize("name", [generate.LITE, tflite.BUNDLE])
def test_verify_finds_what_was_changed(name: str, bundle: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(bundle, tmp_path / "dist")
    (copied / f"{tflite.BUNDLE}_1_2.xnnpack_cache").write_bytes(b"left there by LiteRT-LM")
    assert verify_model(copied, Silence()) > 5
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(InvalidBundle, match=f"{name} was changed since it was built"):
        verify_model(copied, Silence())


def test_litert_lm_runs_what_was_proven(bundle: Path, tmp_path: Path) -> None:
    other = bytearray((bundle / generate.LITE).read_bytes())
    other[len(other) // 2] ^= 1
    (tmp_path / "other.tflite").write_bytes(other)
    tflite._refuse_other_network(bundle / generate.LITE, bundle / tflite.BUNDLE)
    with pytest.raises(ParityLost, match="does not hold the network of other"):
        tflite._refuse_other_network(tmp_path / "other.tflite", bundle / tflite.BUNDLE)


def test_floats_and_missing_matrices_are_no_blocks(bundle: Path, checkpoint: Path) -> None:
    matrices = read_matrices(bundle / generate.LITE)
    decoder, mix = load_decoder(checkpoint), Mix.parse("int4-g32")
    tflite._refuse_other_storage(matrices, mix, decoder)
    skipped = [dataclasses.replace(matrices[0], layout="fp32"), *matrices[1:]]
    with pytest.raises(PrecisionRefused, match=r"1 of \d+ matrices are not stored as int4-g32"):
        tflite._refuse_other_storage(skipped, mix, decoder)
    with pytest.raises(PrecisionRefused, match="decode reads 8 matrices, the network 9"):
        tflite._refuse_other_storage(matrices[:-1], mix, decoder)


def test_too_little_memory_is_refused_with_arithmetic(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama = load_decoder(CONFIGS / "llama-3-8b.json")
    with pytest.raises(DoesNotFit) as refused:
        tflite.refuse_small_memory(llama, 4096, Bytes(16_000_000_000))
    said = str(refused.value)
    assert "3 × 32.1 GB of weights in floats + 2 × 1.07 GB for a cache of 4096 tokens" in said
    assert "16 GB are free on this machine" in said
    assert "the ONNX route streams" in said
    tflite.refuse_small_memory(llama, 4096, Bytes(128_000_000_000))
    monkeypatch.setattr(tflite, "available_memory", lambda: Bytes(500_000_000))
    with pytest.raises(DoesNotFit, match="500 MB are free on this machine"):
        built(checkpoint, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_unknown_family_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    folder = tmp_path / "mixtral"
    folder.mkdir()
    shutil.copyfile(CONFIGS / "deepseek-r1.json", folder / "config.json")
    with pytest.raises(NotExportable, match="deepseek_v3 was not seen .* llama, mistral, qwen2"):
        built(folder, tmp_path / "dist")


def test_checkpoints_that_litert_torch_does_not_read_are_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    bare = shutil.copytree(checkpoint, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    with pytest.raises(InvalidCheckpoint, match=r"has no tokenizer\.json, which goes into"):
        built(bare, tmp_path / "dist")
    source = open_source(checkpoint)
    packed = dataclasses.replace(
        source, settings={**source.settings, "quantization_config": {"quant_method": "fp8"}}
    )
    target = load_target("phone-12gb")
    with pytest.raises(InvalidCheckpoint, match="is quantized by fp8"):
        tflite.Tflite().refuse(packed, target, Wanted())


def test_gguf_is_written_out_as_the_floats_that_it_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    write_gguf(tmp_path / "tiny.gguf", "llama", TINY)
    source = open_source(tmp_path / "tiny.gguf")
    tflite.Tflite().refuse(source, load_target("phone-12gb"), Wanted())
    # The file has no tokenizer to rebuild.
    monkeypatch.setattr(save, "write_beside", lambda checkpoint, folder: None)
    folder = tflite._folder(source, tmp_path)
    tokens = np.random.default_rng(3).integers(0, 96, (1, 20))
    forward = Forward(source, read_network(source))
    own = forward.logits(forward.states(tokens, Silence())[0])
    with torch.no_grad():
        network = AutoModelForCausalLM.from_pretrained(folder).eval().float()
        theirs = network(torch.tensor(tokens)).logits[0].numpy()
    np.testing.assert_allclose(own, theirs, atol=1e-4)


def test_precisions_without_kernels_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    for weights, reason in (
        ("int8", "int8-g32 has no kernels there"),
        ("int4-g32-asym", "floats or four bits in blocks"),
        ("int4-g64", "down_proj.weight has 160 columns, which are no whole blocks of 64"),
    ):
        with pytest.raises(PrecisionRefused, match=reason):
            built(checkpoint, tmp_path / "dist", weights=Mix.parse(weights))
    with pytest.raises(InputError, match="--context 63 is too short for a proof: give 64"):
        built(checkpoint, tmp_path / "dist", context=63)
    with pytest.raises(InputError, match="--storage gives every matrix its own bits"):
        built(checkpoint, tmp_path / "dist", limit=Bytes(60_000))


@pytest.mark.parametrize("release", ["2.0.3", "tflite-runtime 2.14.0"])
def test_targets_with_old_runtimes_are_refused(release: str, checkpoint: Path) -> None:
    target, source = load_target("phone-12gb"), open_source(checkpoint)
    old = tuple(dataclasses.replace(each, version=release) for each in target.runtimes)
    wanted = Wanted(weights=Mix.parse("int4-g32"))
    with pytest.raises(PrecisionRefused, match=f"{release}, which computes this wrongly"):
        tflite.Tflite().refuse(source, dataclasses.replace(target, runtimes=old), wanted)


def test_folders_and_formats_are_kept_apart(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InvalidDestination, match="holds something else"):
        built(checkpoint, tmp_path)
    with pytest.raises(InvalidDestination, match="holds something else"):
        built(checkpoint, bundle, format="onnx")
    with pytest.raises(InputError, match="built as onnx or tflite, not as 'tflit'. Did you mean"):
        built(checkpoint, tmp_path / "dist", format="tflit")
