"""Checks that a workload can be built from, before any work is spent on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from edgebuild.vocabulary.errors import (
    InvalidWorkload,
    a_kind_of,
    told,
)
from edgebuild.vocabulary.workload import Workload

if TYPE_CHECKING:
    import torch


def check_workload(workload: object) -> None:
    """Refuses what cannot be built from; the splits are checked later, as they are stored.

    Raises:
        InvalidWorkload: a field that is not what `Workload` says, a network that is in train mode,
            broken or not on the CPU, or that does not run on its example.
    """
    if not isinstance(workload, Workload):
        raise InvalidWorkload(f"{a_kind_of(workload)} is no workload: give an edgebuild Workload")
    if not isinstance(workload.name, str) or not workload.name.strip():
        raise InvalidWorkload(
            f'the workload\'s name is {workload.name!r}: give it a short one, as "solar-cells"'
        )
    try:
        _check_network(workload.network)
        _check_example(workload.example)
        _check_outputs(workload.network, workload.example)
        _check_rest(workload)
    except _Defect as defect:
        raise InvalidWorkload(f"workload {workload.name!r}: {defect}") from defect.__cause__


class _Defect(Exception):
    """What is wrong with a workload, and the next step."""


def _check_network(network: object) -> None:
    from torch import nn

    if isinstance(network, type) and issubclass(network, nn.Module):
        raise _Defect(f"the network is the class {network.__name__}: give an instance of it")
    if not isinstance(network, nn.Module):
        raise _Defect(f"the network is {a_kind_of(network)}: give an nn.Module")
    training = [name for name, module in network.named_modules() if module.training]
    if training:
        part = f"layer {training[0]!r} of the network" if training[0] else "network"
        raise _Defect(f"the {part} is in train mode: call .eval() on the network")
    for name, parameter in network.named_parameters():
        _check_weight(f"the network's parameter {name!r}", parameter, _is_finite)
    for name, buffer in network.named_buffers():
        _check_weight(f"the network's buffer {name!r}", buffer, _is_finite_or_masked)


def _check_weight(
    name: str, tensor: torch.Tensor, is_sound: Callable[[torch.Tensor], bool]
) -> None:
    from torch.nn.parameter import is_lazy

    if is_lazy(tensor):
        raise _Defect(f"{name} has no shape yet: run the network once")
    _check_device(name, tensor, "load its weights", "call .cpu() on the network")
    if not is_sound(tensor):
        raise _Defect(
            f"{name} holds NaN or infinite values: train it again, or load an intact checkpoint"
        )


def _check_device(name: str, tensor: torch.Tensor, if_meta: str, if_elsewhere: str) -> None:
    if tensor.device.type == "meta":
        raise _Defect(f"{name} is on the meta device, without data: {if_meta}")
    if tensor.device.type != "cpu":
        raise _Defect(f"{name} is on {tensor.device}: {if_elsewhere}")


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.dtype.is_floating_point:
        return True
    # Formats of eight bits have no arithmetic of their own.
    values = tensor.detach().float() if tensor.itemsize == 1 else tensor.detach()
    return bool(values.isfinite().all())


def _is_finite_or_masked(tensor: torch.Tensor) -> bool:
    """As attention masks are: buffers of zeros and -inf."""
    return not tensor.dtype.is_floating_point or _is_finite(tensor.detach().float().clamp(min=0))


def _check_example(example: object) -> None:
    import torch

    if isinstance(example, torch.Tensor):
        raise _Defect("the example is a bare tensor: give a tuple, as (tensor,)")
    if not isinstance(example, tuple):
        raise _Defect(f"the example is {a_kind_of(example)}: give a tuple of tensors")
    if not example:
        raise _Defect("the example is empty: give a tuple with the inputs of one call")
    for index, tensor in enumerate(example):
        _check_input(f"the example's input {index}", tensor)


def _check_input(name: str, tensor: object) -> None:
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise _Defect(f"{name} is {a_kind_of(tensor)}: give a tensor")
    _check_device(name, tensor, "give a real tensor", "call .cpu() on it")
    if tensor.ndim == 0:
        raise _Defect(f"{name} has no dimensions: give it a batch dimension of 1, as shape (1,)")
    if tensor.shape[0] != 1:
        raise _Defect(
            f"{name} has the shape {tuple(tensor.shape)}, so a batch of {tensor.shape[0]}: "
            "give one sample, as tensor[:1]; or tensor.unsqueeze(0), if this has no batch dimension"
        )
    if tensor.layout != torch.strided or not _has_array(tensor.dtype):
        kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
        raise _Defect(f"{name} is {kind}, which numpy does not have: give a plain float32 tensor")
    if not _is_finite(tensor):
        raise _Defect(f"{name} holds NaN or infinite values: give a sample as deployed")


def _has_array(dtype: torch.dtype) -> bool:
    import torch

    try:
        torch.empty(0, dtype=dtype).numpy()
    except TypeError:
        return False
    return True


def _check_outputs(network: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> None:
    import torch

    try:
        with torch.no_grad():
            # Copies: the network may write into what it is given.
            outputs = network(*(tensor.detach().clone() for tensor in example))
    except Exception as error:
        step = _with_batch(network, example) or "call network(*example) to see where"
        raise _Defect(f"the network does not run on the example: {told(error)} ({step})") from error
    leaves = list(_leaves(outputs, "output"))
    if not leaves:
        raise _Defect(f"the network returns an empty {type(outputs).__name__}: return a tensor")
    for name, value in leaves:
        _check_output(f"the network's {name}", value)
        _check_batch(
            f"the network's {name}",
            value,
            _with_batch(network, example) or "return it transposed, or leave it out",
        )


def _with_batch(network: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> str:
    """What to do where the example has lost its batch dimension; empty where that is not it."""
    import torch

    try:
        with torch.no_grad():
            outputs = network(*(tensor.detach().clone().unsqueeze(0) for tensor in example))
    except Exception:
        return ""
    if any(getattr(value, "shape", ())[:1] != (1,) for _, value in _leaves(outputs, "")):
        return ""
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in example)
    return (
        f"it does with a batch dimension of 1 in front, which the example, of shape {shapes}, "
        "lacks: give tensor.unsqueeze(0), and samples likewise"
    )


def _leaves(value: object, name: str) -> Iterator[tuple[str, object]]:
    """Everything in a structure of tuples, lists and dicts, with its place in it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name} {key!r}")
    elif isinstance(value, tuple | list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{name} {index}")
    else:
        yield name, value


def _check_batch(name: str, output: object, step: str) -> None:
    """Outputs are joined along the batch, so that is where their first dimension must be."""
    shape = tuple(getattr(output, "shape", ()))
    if shape[:1] != (1,):
        raise _Defect(f"{name} has the shape {shape}, without the batch of 1 in front: {step}")


def _check_output(name: str, value: object) -> None:
    import torch

    if not isinstance(value, torch.Tensor):
        raise _Defect(
            f"{name} is {a_kind_of(value)}: return a tensor, or a tuple, list or dict of tensors"
        )
    if value.ndim == 0:
        raise _Defect(f"{name} has no dimensions: keep the batch dimension")
    if not _is_finite(value):
        raise _Defect(
            f"{name} holds NaN or infinite values on the example: "
            "check the weights, and how the example is normalized"
        )


def _check_rest(workload: Workload) -> None:
    if workload.score is not None and not callable(workload.score):
        raise _Defect(
            f"the score is {a_kind_of(workload.score)}: "
            "give a function (outputs, labels) -> float, or None"
        )
    if not isinstance(workload.notices, Mapping):
        raise _Defect(
            f"the notices are {a_kind_of(workload.notices)}: give a dict from name to text"
        )
