"""TFLite files are read by site, and their biases made as the quantizer wants them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.tools import flatbuffer_utils
from conftest import Workshop, outputs_of, recipe_of, uniform

from edgebuild.exporters._tflite_graph import Graph, flatten_biases
from edgebuild.vocabulary.artifact import Artifact
from edgebuild.vocabulary.precision import Precision


def biases(model: Any) -> list[Any]:
    """The biases of the fully connected layers."""
    fully_connected = 9
    (subgraph,) = model.subgraphs
    return [
        subgraph.tensors[operator.inputs[2]]
        for operator in subgraph.operators
        if model.operatorCodes[operator.opcodeIndex].builtinCode == fully_connected
        and len(operator.inputs) == 3
        and operator.inputs[2] >= 0
    ]


def test_biases_become_flat_and_keep_their_numbers(workshop: Workshop, tmp_path: Path) -> None:
    artifact = workshop.artifact("vit", "tflite", Precision.FP32)
    model = flatbuffer_utils.read_model(artifact.path)
    assert biases(model)
    for bias in biases(model):
        bias.shape = [1, 1, 1, *bias.shape]
    path = tmp_path / "model.tflite"
    flatbuffer_utils.write_model(model, path)
    flatten_biases(path)
    assert all(len(bias.shape) == 1 for bias in biases(flatbuffer_utils.read_model(path)))
    flat = Artifact(path, "tflite", "litert", artifact.inputs, artifact.outputs)
    held_out = workshop.subject("vit").held_out
    for wanted, got in zip(
        workshop.outputs_of("vit", artifact), outputs_of(flat, held_out), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", Precision)
def test_the_file_says_how_every_layer_is_stored(workshop: Workshop, precision: Precision) -> None:
    program = workshop.subject("vit").program
    artifact = workshop.artifact("vit", "tflite", precision)
    graph = Graph.read(artifact.path, program)
    stored = {operator.site: graph.storage(operator) for operator in graph.weighted}
    wanted = uniform(program, "tflite", precision).precisions
    assert stored == {site.path: chosen for site, chosen in wanted.items()}


def test_a_layer_whose_name_begins_like_anothers_keeps_its_own_precision(
    workshop: Workshop, tmp_path: Path
) -> None:
    program = workshop.subject("residual-cnn").program
    precisions = dict.fromkeys(program.sites, Precision.INT8_STATIC)
    # Captured as conv2d_1, beside conv2d and conv2d_2.
    (second,) = [site for site, nodes in program.nodes.items() if nodes == ("conv2d_1",)]
    precisions[second] = Precision.FP32
    artifact = workshop.export("residual-cnn", recipe_of("tflite", precisions), tmp_path)
    graph = Graph.read(artifact.path, program)
    stored = {operator.site: graph.storage(operator) for operator in graph.weighted}
    assert stored == {site.path: chosen for site, chosen in precisions.items()}


def test_a_file_read_and_written_again_is_the_same_model(
    workshop: Workshop, tmp_path: Path
) -> None:
    artifact = workshop.artifact("vit", "tflite", Precision.FP32)
    copy = Path(shutil.copy(artifact.path, tmp_path))
    flatten_biases(copy)
    program = workshop.subject("vit").program
    assert (
        Graph.read(copy, program).layers_in_order()
        == Graph.read(artifact.path, program).layers_in_order()
    )
