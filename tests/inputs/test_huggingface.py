"""A checkpoint folder becomes a workload, or is refused in one line."""

from __future__ import annotations

import copy
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgebuild.inputs.huggingface import DATA_NOTICE, load_checkpoint
from edgebuild.vocabulary.errors import InvalidWorkload, MissingPackage
from edgebuild.vocabulary.workload import Workload

transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("optimum.exporters.tasks")

TEXT: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
    "num_labels": 5,
}


def bert() -> Any:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT))


def distilbert() -> Any:
    config = transformers.DistilBertConfig(
        vocab_size=96,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=256,
        num_labels=5,
    )
    return transformers.DistilBertForSequenceClassification(config)


def masked_bert() -> Any:
    return transformers.BertForMaskedLM(transformers.BertConfig(**TEXT))


def answering_bert() -> Any:
    config = transformers.BertConfig(**{**TEXT, "num_labels": 2})
    return transformers.BertForQuestionAnswering(config)


def vit() -> Any:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    return transformers.ViTForImageClassification(config)


def resnet() -> Any:
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        num_labels=5,
    )
    return transformers.ResNetForImageClassification(config)


def gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=4, n_positions=16)
    return transformers.GPT2LMHeadModel(config)


def t5() -> Any:
    config = transformers.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=1)
    return transformers.T5ForConditionalGeneration(config)


def clip() -> Any:
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    config = transformers.CLIPConfig(
        text_config={**tower, "vocab_size": 96},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
    )
    return transformers.CLIPModel(config)


def saved(make: Callable[[], Any], folder: Path) -> Path:
    """The folder of a tiny random checkpoint."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(bert, tmp_path_factory.mktemp("checkpoints") / "tiny-bert")


@pytest.fixture
def broken_bert(bert_folder: Path, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, for a test to break."""
    return Path(shutil.copytree(bert_folder, tmp_path / "tiny-bert"))


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    settings = {**json.loads(file.read_text()), **changes}
    kept = {name: value for name, value in settings.items() if value is not None}
    file.write_text(json.dumps(kept))


def refusal(folder: Path, task: str | None = None) -> str:
    """The one line that a folder is refused with."""
    with pytest.raises(InvalidWorkload) as caught:
        load_checkpoint(folder, task)
    message = str(caught.value)
    assert "\n" not in message
    return message


def samples(split: Any) -> list[tuple[tuple[torch.Tensor, ...], None]]:
    return list(split)


def exported_outputs(workload: Workload) -> list[torch.Tensor]:
    program = torch.export.export(workload.network, tuple(t.clone() for t in workload.example))
    return list(program.module()(*workload.example))


@pytest.mark.parametrize(
    ("make", "shapes", "outputs"),
    [
        (bert, [(1, 24)] * 3, [(1, 5)]),
        (distilbert, [(1, 128)] * 2, [(1, 5)]),
        (masked_bert, [(1, 24)] * 3, [(1, 24, 96)]),
        (answering_bert, [(1, 24)] * 3, [(1, 24), (1, 24)]),
        (vit, [(1, 3, 32, 32)], [(1, 5)]),
        (resnet, [(1, 3, 224, 224)], [(1, 5)]),
    ],
)
def test_a_checkpoint_becomes_a_workload(
    make: Callable[[], Any],
    shapes: list[tuple[int, ...]],
    outputs: list[tuple[int, ...]],
    tmp_path: Path,
) -> None:
    workload = load_checkpoint(saved(make, tmp_path / "tiny"))
    assert workload.name == "tiny"
    assert [tuple(tensor.shape) for tensor in workload.example] == shapes
    assert not workload.network.training
    assert workload.score is None
    with torch.no_grad():
        returned = workload.network(*workload.example)
    assert isinstance(returned, tuple)
    assert [tuple(tensor.shape) for tensor in returned] == outputs
    for ours, exported in zip(returned, exported_outputs(workload), strict=True):
        torch.testing.assert_close(exported, ours)


def test_the_network_computes_what_the_checkpoint_computes(bert_folder: Path) -> None:
    workload = load_checkpoint(bert_folder)
    original = transformers.BertForSequenceClassification.from_pretrained(bert_folder).eval()
    ids, mask, segments = workload.example
    with torch.no_grad():
        wanted = original(input_ids=ids, attention_mask=mask, token_type_ids=segments).logits
        torch.testing.assert_close(workload.network(*workload.example)[0], wanted)


def test_the_exported_inputs_keep_their_names(bert_folder: Path) -> None:
    workload = load_checkpoint(bert_folder)
    program = torch.export.export(copy.deepcopy(workload.network), workload.example)
    names = ("input_ids", "attention_mask", "token_type_ids")
    assert program.graph_signature.user_inputs == names


def test_half_precision_weights_are_loaded_as_float32(tmp_path: Path) -> None:
    workload = load_checkpoint(saved(lambda: bert().half(), tmp_path / "half"))
    assert {tensor.dtype for tensor in workload.network.parameters()} == {torch.float32}


def test_samples_are_disjoint_and_always_the_same(bert_folder: Path) -> None:
    workload, again = load_checkpoint(bert_folder), load_checkpoint(bert_folder)
    splits = [workload.calibration, workload.validation, workload.test]
    same = [again.calibration, again.validation, again.test]
    ids = [sample[0][0].numpy().tobytes() for split in splits for sample in samples(split)]
    assert len(ids) == len(set(ids)) == 96
    assert ids == [sample[0][0].numpy().tobytes() for split in same for sample in samples(split)]


def test_samples_look_like_the_example_and_have_no_label(bert_folder: Path) -> None:
    workload = load_checkpoint(bert_folder)
    for inputs, label in samples(workload.test):
        assert label is None
        assert [(t.shape, t.dtype) for t in inputs] == [
            (t.shape, t.dtype) for t in workload.example
        ]
        ids, mask, _ = inputs
        assert 0 <= int(ids.min()) <= int(ids.max()) < 96
        assert sorted(set(mask.flatten().tolist())) == [0, 1]


def test_loading_leaves_no_trace_in_the_random_generators(bert_folder: Path) -> None:
    before = random.getstate(), torch.get_rng_state()
    samples(load_checkpoint(bert_folder).calibration)
    after = random.getstate(), torch.get_rng_state()
    assert before[0] == after[0]
    assert torch.equal(before[1], after[1])


def test_a_task_other_than_the_architectures_can_be_given(tmp_path: Path) -> None:
    folder = saved(masked_bert, tmp_path / "tiny")
    (states,) = load_checkpoint(folder, "feature-extraction").network(
        *load_checkpoint(folder).example
    )
    assert states.shape == (1, 24, 32)


def test_without_an_image_size_the_preprocessors_is_taken(tmp_path: Path) -> None:
    folder = saved(resnet, tmp_path / "tiny")
    settings = {"size": {"shortest_edge": 64}, "crop_size": {"height": 48, "width": 40}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    assert load_checkpoint(folder).example[0].shape == (1, 3, 48, 40)


def test_the_notices_say_that_the_data_are_synthetic(bert_folder: Path) -> None:
    assert load_checkpoint(bert_folder).notices == {"Data": DATA_NOTICE}


def test_the_notices_carry_the_checkpoints_license(broken_bert: Path) -> None:
    (broken_bert / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Tiny\n")
    (broken_bert / "LICENSE").write_text("Apache License, Version 2.0\n")
    notices = load_checkpoint(broken_bert).notices
    assert notices["Checkpoint"] == "apache-2.0\n\nApache License, Version 2.0"


def test_loading_prints_nothing(bert_folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path;"
        "from edgebuild.inputs.huggingface import load_checkpoint;"
        "load_checkpoint(Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(bert_folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == ""
    assert done.stderr == ""


def test_importing_the_reader_imports_no_torch() -> None:
    program = "import sys; import edgebuild.inputs.huggingface; assert 'torch' not in sys.modules"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)


@pytest.mark.parametrize(("make", "name"), [(gpt2, "GPT2LMHeadModel"), (t5, "T5For")])
@pytest.mark.parametrize("task", [None, "feature-extraction"])
def test_a_generative_model_is_refused(
    make: Callable[[], Any], name: str, task: str | None, tmp_path: Path
) -> None:
    message = refusal(saved(make, tmp_path / "tiny"), task)
    assert name in message
    assert "is a generative model" in message


def test_a_generative_model_of_unknown_kind_is_refused_as_such(broken_bert: Path) -> None:
    change_config(broken_bert, model_type="gnarl", architectures=["GnarlForCausalLM"])
    assert "GnarlForCausalLM is a generative model" in refusal(broken_bert)


def test_a_network_of_text_and_images_is_refused(tmp_path: Path) -> None:
    message = refusal(saved(clip, tmp_path / "tiny"))
    assert "CLIPModel takes input_ids, pixel_values" in message


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "nowhere")


def test_a_folder_without_a_configuration_is_refused(broken_bert: Path) -> None:
    (broken_bert / "config.json").unlink()
    assert "has no config.json" in refusal(broken_bert)


@pytest.mark.parametrize("text", ['{"model_type": ', '["bert"]'])
def test_a_malformed_configuration_is_refused(text: str, broken_bert: Path) -> None:
    (broken_bert / "config.json").write_text(text)
    assert "config.json" in refusal(broken_bert)


def test_an_impossible_configuration_is_refused(broken_bert: Path) -> None:
    change_config(broken_bert, hidden_size="wide")
    assert "config.json cannot be used" in refusal(broken_bert)


def test_an_unknown_model_type_is_refused(broken_bert: Path) -> None:
    change_config(broken_bert, model_type="gnarl")
    assert "gnarl" in refusal(broken_bert)


def test_an_unknown_architecture_is_refused(broken_bert: Path) -> None:
    change_config(broken_bert, architectures=["BertForMindReading"])
    assert "unknown architecture 'BertForMindReading'" in refusal(broken_bert)


def test_an_architecture_without_a_task_is_refused(broken_bert: Path) -> None:
    change_config(broken_bert, architectures=["BertForPreTraining"])
    assert "no task is known for the architecture BertForPreTraining" in refusal(broken_bert)


def test_without_an_architecture_the_task_must_be_given(broken_bert: Path) -> None:
    change_config(broken_bert, architectures=None)
    assert "names no architecture" in refusal(broken_bert)
    assert load_checkpoint(broken_bert, "text-classification").example[0].shape == (1, 24)


def test_an_unknown_task_is_refused_with_the_nearest(bert_folder: Path) -> None:
    message = refusal(bert_folder, "text-classifcation")
    assert "Did you mean 'text-classification'?" in message


def test_a_task_of_another_kind_of_network_is_refused(bert_folder: Path) -> None:
    assert "for image-classification" in refusal(bert_folder, "image-classification")


def test_missing_weights_are_refused(broken_bert: Path) -> None:
    (broken_bert / "model.safetensors").unlink()
    assert "has no weights" in refusal(broken_bert)


def test_truncated_weights_are_refused(broken_bert: Path) -> None:
    file = broken_bert / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert "cannot be loaded" in refusal(broken_bert)


def test_weights_of_another_size_are_refused(broken_bert: Path) -> None:
    change_config(broken_bert, vocab_size=128)
    assert "cannot be loaded" in refusal(broken_bert)


def test_weights_of_another_task_are_refused_rather_than_drawn(tmp_path: Path) -> None:
    folder = saved(masked_bert, tmp_path / "tiny")
    message = refusal(folder, "text-classification")
    assert "lacks" in message
    assert "classifier" in message or "pooler" in message


def test_a_quantized_checkpoint_is_refused(broken_bert: Path) -> None:
    change_config(broken_bert, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "is already quantized" in refusal(broken_bert)


@pytest.mark.parametrize("package", ["transformers", "optimum.exporters.tasks"])
def test_a_missing_package_is_named_with_its_extra(
    package: str, bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage, match=r"pip install 'edgebuild\[hf\]'"):
        load_checkpoint(bert_folder)
