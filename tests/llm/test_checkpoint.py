"""Checkpoints are found whole by their headers, and broken ones are refused by what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from llm.checkpoints import TINY, random_tensors, write_checkpoint

from edgebuild.llm.checkpoint import INDEX, load_checkpoint
from edgebuild.vocabulary.errors import InvalidCheckpoint


@pytest.mark.parametrize("shards", [1, 3])
def test_all_tensors_are_found(tmp_path: Path, shards: int) -> None:
    tensors = random_tensors(TINY)
    found = load_checkpoint(write_checkpoint(tmp_path, tensors=tensors, shards=shards))
    assert found.tensors.keys() == tensors.keys()
    assert found.stored == sum(tensor.numel() * 2 for tensor in tensors.values())
    one = found.tensors["model.norm.weight"]
    with one.file.open("rb") as file:
        file.seek(one.offset)
        read = torch.frombuffer(bytearray(file.read(one.length)), dtype=torch.bfloat16)
    assert torch.equal(read, tensors["model.norm.weight"])


def test_a_config_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    assert load_checkpoint(tmp_path).tensors == {}
    assert load_checkpoint(tmp_path / "config.json").decoder.hidden == 64


def test_the_text_part_of_a_multimodal_checkpoint_goes_by_its_plain_names(tmp_path: Path) -> None:
    config = {"model_type": "gemma3", "text_config": TINY | {"head_dim": 16}}
    plain = random_tensors(config)
    named = {f"language_model.{name}": tensor for name, tensor in plain.items()}
    found = load_checkpoint(write_checkpoint(tmp_path, config, named))
    assert found.tensors.keys() == plain.keys()


def cut_short(folder: Path) -> None:
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def garbage(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"\xff" * 64)


def corrupt_header(folder: Path) -> None:
    file = folder / "model-00001-of-00002.safetensors"
    data = bytearray(file.read_bytes())
    data[8] = ord("[")
    file.write_bytes(data)


def wrong_offsets(folder: Path) -> None:
    file = folder / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"data_offsets":[0,', b'"data_offsets":[2,', 1))


def missing_shard(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").unlink()


def outside(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))


def no_weight_map(folder: Path) -> None:
    (folder / INDEX).write_text("{}")


def other_width(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(TINY | {"intermediate_size": 128}))


def more_layers(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(TINY | {"num_hidden_layers": 3}))


def only_pickles(folder: Path) -> None:
    for file in (*folder.glob("*.safetensors"), folder / INDEX):
        file.unlink()
    (folder / "pytorch_model.bin").touch()


DEFECTS: dict[Callable[[Path], None], str] = {
    cut_short: "is cut short",
    garbage: "is no safetensors file, or cut short",
    corrupt_header: "cannot be read",
    wrong_offsets: "is corrupt",
    missing_shard: "00001-of-00002.safetensors is missing",
    outside: "outside of its folder",
    no_weight_map: "has no weight_map",
    other_width: "has the shape 160 × 64, and config.json says 128 × 64",
    more_layers: "lacks model.layers.2.",
    only_pickles: "a pickle, which runs code",
}


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_broken_checkpoints_are_refused(tmp_path: Path, defect: Callable[[Path], None]) -> None:
    folder = write_checkpoint(tmp_path, shards=2)
    defect(folder)
    with pytest.raises(InvalidCheckpoint, match=DEFECTS[defect]):
        load_checkpoint(folder)


def test_integers_where_floats_belong_are_refused(tmp_path: Path) -> None:
    tensors = random_tensors(TINY)
    tensors["model.norm.weight"] = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(InvalidCheckpoint, match="stored as I32"):
        load_checkpoint(write_checkpoint(tmp_path, tensors=tensors))
