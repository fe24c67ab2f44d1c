"""The number formats that a layer can be stored and computed in."""

from __future__ import annotations

from enum import StrEnum

# The symmetric narrow grids that weights are rounded to: as many steps below zero as above.
EIGHT_BIT_STEPS = 127
FOUR_BIT_STEPS = 7
# How many four-bit weights of a linear layer share a scale in onnxruntime: 32 is the finest with a
# fast kernel.
FOUR_BIT_BLOCK = 32


class Precision(StrEnum):
    """How one layer's weights are stored and on which kernels it runs.

    FP16 stores halves and computes in fp32 wherever the runtime's CPU kernels do.
    INT8_STATIC has calibrated activations and per-channel weights; INT8_DYNAMIC finds the
    activations' scale at run time; INT4_WEIGHTS stores four-bit weights that meet eight-bit
    activations in an integer kernel. INT16_ACTIVATIONS has eight-bit weights and calibrated
    sixteen-bit activations, which accelerators compute in integers and CPU kernels do not.
    FP8_WEIGHTS (E4M3FN) and BINARY_WEIGHTS (a sign, times the mean magnitude of its channel) are
    forms of storage alone: they are widened when a model is loaded and compute in fp32.
    """

    FP32 = "fp32"
    FP16 = "fp16"
    INT8_STATIC = "int8-static"
    INT8_DYNAMIC = "int8-dynamic"
    INT4_WEIGHTS = "int4-weights"
    INT16_ACTIVATIONS = "int16-activations"
    FP8_WEIGHTS = "fp8-weights"
    BINARY_WEIGHTS = "binary-weights"

    @property
    def is_integer(self) -> bool:
        """Whether the layer must run on integer kernels.

        Sixteen-bit activations need not: onnxruntime computes them in float, and LiteRT's own
        kernels for them, outside XNNPACK, do not say how they compute.
        """
        return self.value in ("int8-static", "int8-dynamic", "int4-weights")

    @property
    def is_storage_only(self) -> bool:
        """Whether no runtime has a kernel for it, so that it saves storage and nothing else."""
        return self.value in ("fp8-weights", "binary-weights")

    @property
    def weight_bits(self) -> int:
        return {"fp32": 32, "fp16": 16, "int4-weights": 4, "binary-weights": 1}.get(self.value, 8)


class LayerKind(StrEnum):
    """The classes of layers that runtimes have kernels for; a profile lists precisions by them."""

    CONVOLUTION = "convolution"
    DEPTHWISE = "depthwise"
    TRANSPOSED = "transposed"
    LINEAR = "linear"
    RECURRENT = "recurrent"
    EMBEDDING = "embedding"
