"""What would come to nothing is refused before the work, with what would help."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_build
import torch
from listening import Listening
from torch import Tensor, nn

from edgebuild import catalog
from edgebuild.cache import Cache
from edgebuild.search import loop
from edgebuild.search.case import Case
from edgebuild.search.hopeless import refuse_hopeless
from edgebuild.search.loop import Wishes, try_uniform
from edgebuild.search.uniform import worth_trying
from edgebuild.vocabulary.errors import InputError, NotExportable
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.silence import Silence

FORMATS = ("onnx", "tflite")


class Decomposed(nn.Module):
    """Singular values, which neither format has an operator for."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, rows: Tensor) -> Tensor:
        return torch.linalg.svdvals(self.layer(rows))


def decomposed(cache: Path) -> Case:
    torch.manual_seed(0)
    rows = list(torch.randn(24, 1, 4, 4))
    given = small_build.workload_of(Decomposed().eval(), rows[0], rows[:12], rows[12:])
    return small_build.case_of(given, Cache(cache))


def small(cache: Path) -> Case:
    return small_build.case_of(small_build.workload(), Cache(cache))


def test_a_precision_that_a_format_has_no_storage_for_is_refused_with_those_it_has(
    tmp_path: Path,
) -> None:
    asked = (Precision.FP8_WEIGHTS,)
    with pytest.raises(InputError) as caught:
        refuse_hopeless(small(tmp_path), ("tflite",), asked, Silence())
    message = str(caught.value)
    assert "no layer of the network can be fp8-weights in tflite" in message
    assert "tflite: " in message
    assert "--precision fp32, " in message
    assert "int8-static" in message
    assert "fp8-weights" not in message.partition("Try ")[2]


def test_an_operator_that_no_format_has_is_refused_before_layers_are_surveyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "sensitivity", small_build.failing(AssertionError("surveys")))
    case = decomposed(tmp_path)
    wishes = Wishes(FORMATS, (Precision.FP32, Precision.INT8_DYNAMIC), ("quantize",))
    with catalog.device("local") as device, pytest.raises(NotExportable) as caught:
        try_uniform(case, wishes, loop.Found(), device, Silence())
    for format in FORMATS:
        assert f"{format}: no operator for aten._linalg_svd" in str(caught.value)
    assert "--format" not in str(caught.value)
    with pytest.raises(NotExportable, match="try --format tflite, write the operator with others"):
        refuse_hopeless(case, ("onnx",), (Precision.FP32,), Silence())


def test_one_format_that_can_is_enough_and_is_not_exported_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = small_build.failing(NotExportable("onnx: no operator for it"))
    monkeypatch.setattr("edgebuild.exporters.onnx.Onnx.export", failing)
    case = small(tmp_path)
    refuse_hopeless(case, FORMATS, (Precision.FP32,), Silence())
    monkeypatch.setattr("edgebuild.exporters.tflite.Tflite.export", failing)
    refuse_hopeless(case, FORMATS, (Precision.FP32,), Silence())
    with pytest.raises(NotExportable):
        refuse_hopeless(case, ("onnx",), (Precision.FP32,), Silence())


def test_one_of_several_precisions_that_no_layer_can_have_is_told(tmp_path: Path) -> None:
    case, progress = small(tmp_path), Listening()
    refuse_hopeless(case, ("tflite",), (Precision.FP32, Precision.FP8_WEIGHTS), progress)
    (said,) = progress.said
    assert said.startswith("fp8-weights is left out, no layer can have it: tflite: ")


def test_of_what_nobody_asked_for_nothing_is_told(tmp_path: Path) -> None:
    case, progress = small(tmp_path), Listening()
    refuse_hopeless(case, ("tflite",), worth_trying(case.budget, case.program), progress)
    assert progress.said == []


def test_what_only_saves_storage_is_told_where_it_was_asked_for(tmp_path: Path) -> None:
    case, progress = small(tmp_path), Listening()
    refuse_hopeless(case, FORMATS, (Precision.FP32, Precision.FP8_WEIGHTS), progress)
    assert progress.said == [
        "fp8-weights has no kernel anywhere: it saves storage, and nothing else"
    ]
