"""What the example workloads share: a cache for slow preparation, a fair split, a score."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Tensors = dict[str, Tensor]


def prepared(
    make: Callable[[], Tensors], sources: Sequence[str], packages: Sequence[str]
) -> Tensors:
    """The tensors `make` returns, computed once for these source files and package versions."""
    versions = [_version(package) for package in ("torch", *packages)]
    texts = [Path(source).read_bytes() for source in (__file__, *sources)]
    key = hashlib.sha256(repr((versions, texts)).encode()).hexdigest()[:16]
    path = _folder() / f"{Path(sources[0]).stem}-{key}.pt"
    if not path.exists():
        _save(make(), path)
    # Memory mapping makes a large cache open at once; nothing is read before it is used.
    tensors: Tensors = torch.load(path, weights_only=True, mmap=True)
    return tensors


def stratified(labels: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of a 60/20/20 train, validation and test split with equal shares of each class."""
    generator = torch.Generator().manual_seed(seed)
    pieces = []
    for label in torch.unique(labels):
        members = torch.where(labels == label)[0]
        members = members[torch.randperm(len(members), generator=generator)]
        cuts = [round(0.6 * len(members)), round(0.8 * len(members))]
        pieces.append(torch.tensor_split(members, cuts))
    # Sorted again, so that no split is grouped by class.
    train, validation, test = (
        torch.cat(parts).sort().values for parts in zip(*pieces, strict=True)
    )
    return train, validation, test


def accuracy(outputs: NDArray[Any], labels: NDArray[Any]) -> float:
    """The share of rows whose largest output is the labeled class."""
    return float(np.mean(outputs.argmax(axis=1) == labels))


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError as error:
        hint = "pip install 'edgebuild[benchmarks]'"
        raise ModuleNotFoundError(f"this workload needs {package}; install it: {hint}") from error


def _folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "edgebuild" / "benchmarks"


def _save(tensors: Tensors, path: Path) -> None:
    """Write beside the target, then rename: no reader ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder) / path.name
        torch.save(tensors, partial)
        partial.replace(path)
