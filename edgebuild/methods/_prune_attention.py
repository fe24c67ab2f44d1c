"""Spells out `nn.MultiheadAttention`, so that its heads and what it reads can be cut apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgebuild.methods._channel_groups import Unfit


def spell_out(network: nn.Module) -> None:
    """Replaces every plain `nn.MultiheadAttention` in place by four linear layers."""
    for path, module in list(network.named_modules()):
        if path and _is_plain(module):
            assert isinstance(module, nn.MultiheadAttention)
            network.set_submodule(path, SpelledAttention(module))


def join_again(network: nn.Module) -> None:
    """Packs in place what was spelled out, under the names that it had.

    Raises:
        Unfit: query, key and value no longer read equally many channels.
    """
    for path, module in list(network.named_modules()):
        if isinstance(module, SpelledAttention):
            network.set_submodule(path, _joined(module))
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoder):
            # Its fast path would hand nested tensors to layers that do not know them.
            module.use_nested_tensor = module.enable_nested_tensor = False


def site_of(network: nn.Module, path: str) -> str:
    """The path that a layer of the spelled network has after `join_again`."""
    owner, _, name = path.rpartition(".")
    is_packed = owner and isinstance(network.get_submodule(owner), SpelledAttention)
    return f"{owner}.in_proj" if is_packed and name != "out_proj" else path


def _is_plain(module: nn.Module) -> bool:
    return (
        type(module) is nn.MultiheadAttention
        and module._qkv_same_embed_dim
        and module.bias_k is None
        and not module.add_zero_attn
    )


def _joined(spelled: SpelledAttention) -> nn.Module:
    """The native class where it can have these widths; it cannot where heads were removed."""
    widths = {spelled.query.in_features, spelled.key.in_features, spelled.value.in_features}
    if len(widths) > 1:
        raise Unfit("query, key and value must read equally many channels")
    narrow = NarrowAttention(spelled)
    if widths != {spelled.query.out_features} or widths != {narrow.embed_dim}:
        return narrow
    with torch.device(narrow.in_proj_weight.device):
        native = nn.MultiheadAttention(
            narrow.embed_dim,
            narrow.num_heads,
            narrow.dropout,
            bias=narrow.in_proj_bias is not None,
            batch_first=narrow.batch_first,
        )
    for owner, ours in ((native, narrow), (native.out_proj, narrow.out_proj)):
        for name, parameter in ours._parameters.items():
            setattr(owner, name, parameter)
    return native.train(spelled.training)


class _Attention(nn.Module):
    """Scaled dot-product attention, called and answering like `nn.MultiheadAttention`.

    Other than that one, its heads may have fewer channels together than what it reads.
    """

    out_proj: nn.Linear
    # Keeps `nn.TransformerEncoderLayer` off a fast path that reads the weights by itself.
    _qkv_same_embed_dim = False

    def __init__(self, heads: int, batch_first: bool, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.batch_first, self.dropout = heads, batch_first, dropout

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All heads' queries, keys and values."""
        raise NotImplementedError

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Inputs and output are (batch, length, channels), or as `batch_first` says."""
        inputs = (query, key, value) if self.batch_first else _flipped(query, key, value)
        queries, keys, values = (
            torch.unflatten(all_heads, -1, (self.num_heads, -1)).transpose(1, 2)
            for all_heads in self.project(*inputs)
        )
        penalty = _penalty(attn_mask, key_padding_mask, queries)
        mixed, weights = self._attend(queries, keys, values, penalty, need_weights)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, penalty: Tensor | None, explicit: bool
    ) -> tuple[Tensor, Tensor | None]:
        dropout = self.dropout if self.training else 0.0
        if not explicit:
            mixed = functional.scaled_dot_product_attention(queries, keys, values, penalty, dropout)
            return mixed, None
        scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
        weights = (scores if penalty is None else scores + penalty).softmax(dim=-1)
        weights = functional.dropout(weights, dropout)
        return weights @ values, weights


class SpelledAttention(_Attention):
    """With a linear layer for each projection."""

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__(packed.num_heads, packed.batch_first, packed.dropout)
        weights = packed.in_proj_weight.detach().chunk(3)
        has_bias = packed.in_proj_bias is not None
        biases = packed.in_proj_bias.detach().chunk(3) if has_bias else (None, None, None)
        self.query, self.key, self.value = map(_linear, weights, biases)
        self.out_proj = _linear(packed.out_proj.weight, packed.out_proj.bias)
        self.train(packed.training)

    @property
    def in_proj_bias(self) -> Tensor | None:
        """What `nn.TransformerEncoderLayer` looks for; it only asks whether there is one."""
        return self.query.bias

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.query(query), self.key(key), self.value(value)


class NarrowAttention(_Attention):
    """With the names that `nn.MultiheadAttention` has: `in_proj_weight` and so on."""

    in_proj_bias: nn.Parameter | None

    def __init__(self, spelled: SpelledAttention) -> None:
        super().__init__(spelled.num_heads, spelled.batch_first, spelled.dropout)
        layers = spelled.query, spelled.key, spelled.value
        self.in_proj_weight = nn.Parameter(torch.cat([one.weight.detach() for one in layers]))
        has_bias = any(layer.bias is not None for layer in layers)
        self.in_proj_bias = nn.Parameter(torch.cat(list(map(_bias, layers)))) if has_bias else None
        self.out_proj = spelled.out_proj
        self.train(spelled.training)

    @property
    def embed_dim(self) -> int:
        """The channels that it reads and puts out."""
        return self.out_proj.out_features

    @property
    def head_dim(self) -> int:
        return self.out_proj.in_features // self.num_heads

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if query is key and key is value:
            packed = functional.linear(query, self.in_proj_weight, self.in_proj_bias)
            return packed.chunk(3, dim=-1)  # type: ignore[return-value]
        weights = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        projected = map(functional.linear, (query, key, value), weights, biases)
        return tuple(projected)  # type: ignore[return-value]


def _bias(layer: nn.Linear) -> Tensor:
    return layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach()


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias is not None, weight.device, weight.dtype)
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def _flipped(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Batch and length exchanged; what was one tensor stays one."""
    flipped = query.transpose(0, 1)
    flipped_key = flipped if key is query else key.transpose(0, 1)
    return flipped, flipped_key, flipped_key if value is key else value.transpose(0, 1)


def _penalty(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, queries: Tensor
) -> Tensor | None:
    """What both masks add to the scores, (batch, heads, length, length) or a part of it."""
    masks = []
    if attn_mask is not None:
        shape = (-1, queries.shape[1]) if attn_mask.ndim == 3 else (1, 1)
        masks.append(_additive(attn_mask, queries).reshape(*shape, *attn_mask.shape[-2:]))
    if key_padding_mask is not None:
        masks.append(_additive(key_padding_mask, queries)[:, None, None, :])
    return sum(masks[1:], masks[0]) if masks else None


def _additive(mask: Tensor, queries: Tensor) -> Tensor:
    """A mask of truth values (true: not to be seen) as a penalty."""
    if mask.dtype is not torch.bool:
        return mask.to(queries.dtype)
    zeros = torch.zeros(mask.shape, dtype=queries.dtype, device=mask.device)
    return zeros.masked_fill(mask, float("-inf"))
