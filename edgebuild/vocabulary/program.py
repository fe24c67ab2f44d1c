"""A network as ATen operators: its sites, and what every operator costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgebuild.vocabulary.precision import LayerKind

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@dataclass(frozen=True, order=True)
class Site:
    """A layer with weights: `path` is its weight's name in the network without the "weight"."""

    path: str
    kind: LayerKind


@dataclass(frozen=True)
class Operator:
    """One operator's work: multiply-accumulates, and elements of weights and activations."""

    name: str
    site: Site | None
    macs: int
    weights: int
    activations: int


@dataclass(frozen=True)
class Program:
    """A network as ATen operators for one input shape.

    `fingerprint` names operators, constants, shapes and weights alike: two networks that compute
    different things never share it, whatever their Python source says. `weights` maps the names
    of weights to their sites, `nodes` each site to the operators that compute with it.
    """

    exported: ExportedProgram
    fingerprint: str
    sites: tuple[Site, ...]
    weights: Mapping[str, Site]
    nodes: Mapping[Site, tuple[str, ...]]
    operators: tuple[Operator, ...]

    def restore(self, arrays: Iterable[Any]) -> Any:
        """The network's own output structure (tensor, tuple, dict) around flat outputs."""
        # Imported here: reading a manifest must not wait for torch.
        from torch.utils import _pytree as pytree

        spec = self.exported.call_spec.out_spec
        assert spec is not None
        flat = list(arrays)
        return flat[0] if spec.is_leaf() else pytree.tree_unflatten(flat, spec)
