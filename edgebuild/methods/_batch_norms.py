"""Folds batch normalization into the layer before it, so that weights are what is stored."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from edgebuild.capture import capture, operator_name
from edgebuild.methods._round_layers import Layer, layers_of
from edgebuild.vocabulary.precision import LayerKind
from edgebuild.vocabulary.program import Program

Norm = nn.modules.batchnorm._BatchNorm
# A class made from one of these may do more than normalize.
PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batch_norms(network: nn.Module, example: tuple[Tensor, ...]) -> Program:
    """Folds every BatchNorm module that alone reads a layer's outputs; captures the result.

    In place, as all exporters do before they quantize. One whose layer is also read elsewhere
    stays.

    Pairs are found in the captured graph, so that it does not matter how the network's code calls
    its modules. The module becomes an nn.Identity wherever it stands.
    """
    program = capture(network, example)
    pairs = list(_pairs(program, network))
    for layer, norm in pairs:
        _fold(layer, norm, network)
        _replace(network, norm, nn.Identity().eval())
    return capture(network, example) if pairs else program


def _pairs(program: Program, network: nn.Module) -> Iterator[tuple[Layer, Norm]]:
    layers = layers_of(program)
    names = program.exported.graph_signature.inputs_to_buffers
    norms = {id(module.running_mean): module for _, module in plain_norms(network)}
    for node in program.exported.graph.nodes:
        if operator_name(node) != "batch_norm":
            continue
        source, mean = node.args[0], node.args[3]
        layer = layers.get(source.name)
        if layer is None or not isinstance(mean, fx.Node) or len(mean.users) > 1:
            continue
        norm = norms.get(id(program.exported.state_dict.get(names.get(mean.name, ""))))
        if norm is not None and layer.is_alone and _fits(layer, source):
            yield layer, norm


def plain_norms(network: nn.Module) -> Iterator[tuple[str, Norm]]:
    """Those that normalize by statistics that they hold, and do nothing else, with their paths."""
    for path, module in network.named_modules():
        if type(module) in PLAIN and not module.training:
            assert isinstance(module, Norm)
            if module.running_mean is not None:
                yield path, module


def _fits(layer: Layer, source: fx.Node) -> bool:
    """Whether the normalized channels are the layer's outputs, and nothing else reads these."""
    if len(source.users) > 1:
        return False
    if layer.site.kind is LayerKind.LINEAR:
        # BatchNorm normalizes the second dimension.
        return bool(source.meta["val"].ndim == 2) and operator_name(layer.node) == "linear"
    return layer.groups == 1 or not _is_turned(layer)


def _is_turned(layer: Layer) -> bool:
    return layer.site.kind is LayerKind.TRANSPOSED


def _fold(layer: Layer, norm: Norm, network: nn.Module) -> None:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    normalization = (mean, variance, norm.eps, norm.weight, norm.bias)
    if layer.site.kind is LayerKind.LINEAR:
        weight, bias = fuse_linear_bn_weights(layer.weight, layer.bias, *normalization)
    else:
        weight, bias = fuse_conv_bn_weights(
            layer.weight, layer.bias, *normalization, transpose=_is_turned(layer)
        )
    owner = next(m for m in network.modules() if getattr(m, "weight", None) is layer.weight)
    owner.weight = nn.Parameter(weight.detach(), layer.weight.requires_grad)
    owner.bias = nn.Parameter(bias.detach(), layer.weight.requires_grad)


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(network.modules()):
        # Not named_children, which names a module once however often it stands there.
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)
