"""The number formats that a layer can be stored and computed in."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """How one layer's weights are stored and on which kernels it runs.

    FP16 stores halves and computes in fp32 wherever the runtime's CPU kernels do.
    INT8_STATIC has calibrated activations and per-channel weights; INT8_DYNAMIC finds the
    activations' scale at run time; INT4_WEIGHTS stores four-bit weights that meet eight-bit
    activations in an integer kernel.
    """

    FP32 = "fp32"
    FP16 = "fp16"
    INT8_STATIC = "int8-static"
    INT8_DYNAMIC = "int8-dynamic"
    INT4_WEIGHTS = "int4-weights"

    @property
    def is_integer(self) -> bool:
        """Whether the layer must run on integer kernels."""
        return self.value.startswith("int")

    @property
    def weight_bits(self) -> int:
        return {"fp32": 32, "fp16": 16, "int4-weights": 4}.get(self.value, 8)


class LayerKind(StrEnum):
    """The classes of layers that runtimes have kernels for; a profile lists precisions by them."""

    CONVOLUTION = "convolution"
    DEPTHWISE = "depthwise"
    TRANSPOSED = "transposed"
    LINEAR = "linear"
    RECURRENT = "recurrent"
    EMBEDDING = "embedding"
