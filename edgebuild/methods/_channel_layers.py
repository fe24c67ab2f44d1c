"""What each kind of layer has per channel: tensors, and attributes that state its size."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from torch import nn

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Normalization = nn.modules.batchnorm._BatchNorm | nn.modules.instancenorm._InstanceNorm
# Layers that runtimes have kernels for, and that costs are stated by.
WEIGHTED = Convolution | Transposed | nn.Linear | nn.Embedding


class Side(Enum):
    """What a layer does with channels: puts them out, reads them, or passes each one on."""

    WRITES = "writes"
    READS = "reads"
    PASSES = "passes"


def is_depthwise(module: nn.Module) -> bool:
    """Whether it is a convolution that filters every channel on its own."""
    return (
        isinstance(module, Convolution | Transposed)
        and module.groups == module.in_channels == module.out_channels > 1
    )


def size_of(module: nn.Module, side: Side) -> int:
    """How many channels a layer has on a side.

    Raises:
        TypeError: a kind of layer that cannot lose channels.
    """
    is_read = side is Side.READS
    match module:
        case nn.Linear():
            return module.in_features if is_read else module.out_features
        case nn.Embedding():
            return module.embedding_dim
        case nn.LayerNorm() | nn.RMSNorm() if len(module.normalized_shape) == 1:
            return module.normalized_shape[0]
        case nn.GroupNorm():
            return module.num_channels
        case nn.PReLU() if module.num_parameters > 1:
            return module.num_parameters
    if isinstance(module, Convolution | Transposed):
        return module.in_channels if is_read else module.out_channels
    if isinstance(module, Normalization):
        return module.num_features
    raise TypeError(f"a {type(module).__name__} cannot lose channels")


def resize(module: nn.Module, side: Side, size: int) -> None:
    """Makes a layer say that it has so many channels on a side; its tensors are not touched."""
    is_read = side is Side.READS
    match module:
        case nn.Linear() if is_read:
            module.in_features = size
        case nn.Linear():
            module.out_features = size
        case nn.Embedding():
            module.embedding_dim = size
        case nn.LayerNorm() | nn.RMSNorm():
            module.normalized_shape = (size,)
        case nn.GroupNorm():
            module.num_channels = size
        case nn.PReLU():
            module.num_parameters = size
    if isinstance(module, Normalization):
        module.num_features = size
    if isinstance(module, Convolution | Transposed):
        _resize_convolution(module, side, size)


def _resize_convolution(module: nn.modules.conv._ConvNd, side: Side, size: int) -> None:
    if side is not Side.WRITES:
        module.in_channels = size
    if side is not Side.READS:
        module.out_channels = size
    if side is Side.PASSES:
        module.groups = size


def tensors_of(module: nn.Module, side: Side) -> Mapping[str, int]:
    """The tensors that have an entry for each channel of a side, with the axis of these."""
    passing = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), 0)
    if isinstance(module, nn.Embedding):
        axes = {"weight": 1}
    elif isinstance(module, Transposed) and side is not Side.PASSES:
        axes = {"weight": 0} if side is Side.READS else {"weight": 1, "bias": 0}
    else:
        axes = {"weight": 1} if side is Side.READS else passing
    return {name: axis for name, axis in axes.items() if getattr(module, name, None) is not None}


def rows_of(
    module: nn.Module, tensor: str, axis: int, units: tuple[tuple[int, ...], ...]
) -> tuple[tuple[int, ...], ...]:
    """Where the channels of units are in a tensor.

    The groups of a convolution lie on top of each other along its weight's second axis.
    """
    if isinstance(module, Convolution | Transposed) and tensor == "weight" and axis == 1:
        stacked = module.weight.shape[1]
        return tuple(tuple({channel % stacked: None for channel in unit}) for unit in units)
    return units
