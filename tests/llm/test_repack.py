"""Weights of GPTQ and AWQ checkpoints come out as the floats that these formats define."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llm.checkpoints import TINY, random_tensors, write_checkpoint
from llm.test_convert import Silence, converted, floats_of

from edgebuild.llm import convert as converting
from edgebuild.llm.checkpoint import load_checkpoint
from edgebuild.llm.importance import Importances
from edgebuild.llm.sites import survey
from edgebuild.vocabulary.errors import InvalidCheckpoint

# The columns that AWQ packs into one integer, from the lowest bits on.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
SHAPE = {"hidden_size": 128, "intermediate_size": 256}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converting, "PACKED_CHUNK", 3000)


def into_integers(codes: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """Packs along the last axis, one code at a time."""
    per = 32 // bits
    packed = np.zeros((*codes.shape[:-1], codes.shape[-1] // per), np.uint32)
    for place in range(per):
        column = order[place] if order else place
        packed |= codes[..., column::per].astype(np.uint32) << np.uint32(bits * place)
    return packed.view(np.int32)


def quantized(
    method: str, bits: int, group: int, scale_dtype: torch.dtype = torch.float16, **more: Any
) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, np.ndarray]]:
    """A configuration, tensors as the method stores them, and the floats that they mean."""
    settings = {"quant_method": method, "bits": bits, "group_size": group, **more}
    config = {**TINY, **SHAPE, "quantization_config": settings}
    tensors, expected = {}, {}
    drawn = np.random.default_rng(0)
    for name, tensor in random_tensors(config, torch.float16).items():
        if not name.startswith("model.layers") or tensor.ndim == 1:
            tensors[name] = tensor
            expected[name] = tensor.float().numpy()
            continue
        outputs, inputs = tensor.shape
        size = inputs if group == -1 else group
        codes = drawn.integers(0, 2**bits, (inputs, outputs), np.uint8)
        zeros = drawn.integers(0, 2**bits, (inputs // size, outputs), np.uint8)
        scales = torch.rand(zeros.shape, generator=torch.Generator().manual_seed(1)) + 0.1
        scales = scales.to(scale_dtype).half().to(scale_dtype)
        steps = codes.astype(np.float32) - np.repeat(zeros, size, axis=0)
        expected[name] = (steps * np.repeat(scales.float().numpy(), size, axis=0)).T
        stem = name.removesuffix("weight")
        order = AWQ_ORDER if method == "awq" else None
        stored = zeros
        if method == "gptq" and more.get("checkpoint_format", "gptq") == "gptq":
            stored = (zeros - 1) & np.uint8(2**bits - 1)
        weights = into_integers(codes, bits, order)
        if method == "gptq":
            weights = into_integers(codes.T, bits).T
        tensors[f"{stem}qweight"] = torch.from_numpy(np.ascontiguousarray(weights))
        tensors[f"{stem}qzeros"] = torch.from_numpy(into_integers(stored, bits, order))
        tensors[f"{stem}scales"] = scales
        if method == "gptq":
            tensors[f"{stem}g_idx"] = torch.arange(inputs, dtype=torch.int32) // size
    return config, tensors, expected


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "gptq in four bits": ({"method": "gptq", "bits": 4, "group": 32}, "int4-g32-asym"),
    "gptq in eight bits": ({"method": "gptq", "bits": 8, "group": 64}, "int8-g64-asym"),
    "gptq in two bits": ({"method": "gptq", "bits": 2, "group": 16}, "int2-g16-asym"),
    "gptq by whole rows": ({"method": "gptq", "bits": 4, "group": -1}, "int4-g128-asym"),
    "gptq, second format": (
        {"method": "gptq", "bits": 4, "group": 128, "checkpoint_format": "gptq_v2"},
        "int4-g128-asym",
    ),
    "awq": ({"method": "awq", "bits": 4, "group": 32, "version": "gemm"}, "int4-g32-asym"),
    "awq with bfloat16 scales": (
        {"method": "awq", "bits": 4, "group": 64, "scale_dtype": torch.bfloat16},
        "int4-g64-asym",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_no_weight_is_rounded_again(tmp_path: Path, case: str) -> None:
    settings, layout = CASES[case]
    config, tensors, expected = quantized(**settings)
    checkpoint = write_checkpoint(tmp_path / "model", config, tensors)
    done = converted(checkpoint, tmp_path / "out", "fp32")
    assert {str(e.layout) for e in done.index.entries if "proj" in e.name} == (
        # What is a whole row in one matrix is a block of one group in another.
        {layout, "int4-g256-asym"} if case == "gptq by whole rows" else {layout}
    )
    assert {entry.name for entry in done.index.entries} == expected.keys()
    for entry in done.index.entries:
        np.testing.assert_array_equal(floats_of(tmp_path / "out", entry), expected[entry.name])


def test_inputs_that_were_sorted_are_refused(tmp_path: Path) -> None:
    config, tensors, _ = quantized("gptq", 4, 32, desc_act=True)
    name = "model.layers.1.mlp.up_proj.g_idx"
    tensors[name] = tensors[name].flip(0).contiguous()
    with pytest.raises(InvalidCheckpoint, match="grouped out of order"):
        converted(write_checkpoint(tmp_path / "model", config, tensors), tmp_path / "out")


def test_other_shapes_are_refused(tmp_path: Path) -> None:
    config, tensors, _ = quantized("gptq", 4, 32)
    config["quantization_config"]["group_size"] = 64
    with pytest.raises(InvalidCheckpoint, match=r"q_proj.qzeros is I32 \(4, 16\), where gptq has"):
        converted(write_checkpoint(tmp_path / "model", config, tensors), tmp_path / "out")


def test_parts_that_are_missing_are_named(tmp_path: Path) -> None:
    config, tensors, _ = quantized("awq", 4, 32)
    del tensors["model.layers.0.mlp.down_proj.qzeros"]
    with pytest.raises(InvalidCheckpoint, match="lacks model.layers.0.mlp.down_proj.qzeros"):
        load_checkpoint(write_checkpoint(tmp_path / "model", config, tensors))


def test_other_variants_are_refused(tmp_path: Path) -> None:
    config, tensors, _ = quantized("awq", 4, 32, version="gemv")
    with pytest.raises(InvalidCheckpoint, match="awq with 4 bits in groups of 32 is not read"):
        converted(write_checkpoint(tmp_path / "model", config, tensors), tmp_path / "out")


def test_bits_are_chosen_for_floats_alone(tmp_path: Path) -> None:
    config, tensors, _ = quantized("awq", 4, 32)
    checkpoint = load_checkpoint(write_checkpoint(tmp_path / "model", config, tensors))
    with pytest.raises(InvalidCheckpoint, match="bits can be chosen for floats alone"):
        survey(checkpoint, Importances(checkpoint), Silence())
