"""What a format does for a language model: refuses early, packs, and is proven in its runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from edgebuild.llm.checkpoint import Checkpoint
from edgebuild.llm.engines import Engine
from edgebuild.llm.forward import Forward
from edgebuild.llm.mix import Layouts, Mix
from edgebuild.llm.reduction import NOTHING, Reduction
from edgebuild.llm.text import Text, Tokenizer
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.decoder import Decoder
from edgebuild.vocabulary.fit import Option
from edgebuild.vocabulary.language_model import Proof, StoredMatrix
from edgebuild.vocabulary.target import Target
from edgebuild.vocabulary.units import Bytes


@dataclass(frozen=True)
class Wanted:
    """What is asked of a bundle.

    Attributes:
        context: tokens that the cache holds; the usual ones unless given.
        weights: a precision; the most precise that fits unless given.
        limit: bytes of the file, within which every matrix gets its own bits.
        text: what to calibrate and to prove with.
        format: "onnx" or "tflite".
    """

    context: int | None = None
    weights: Mix | None = None
    limit: Bytes | None = None
    text: Path | None = None
    format: str = "onnx"

    def context_of(self, decoder: Decoder) -> int:
        """What was asked for, or what is usual for this decoder."""
        return decoder.usual_context if self.context is None else self.context


@dataclass(frozen=True)
class Job:
    """A float network, and how it was planned to be packed."""

    forward: Forward
    option: Option
    limit: Bytes | None
    text: Text | None
    tokenizer: Tokenizer | None

    @property
    def checkpoint(self) -> Checkpoint:
        return self.forward.checkpoint


@dataclass(frozen=True)
class Written:
    """What was written into a bundle's folder.

    Attributes:
        decoder: what was written, which may be less than was there.
        chosen: how each tensor of it is stored.
        layouts: how many tensors are stored in each format.
        matrices: how each of them is stored.
        scales: what scales were chosen by: extremes, or a text.
        size: bytes of the weights; `read` is what one token reads of them.
        prove: compares what was written with the float network, in its runtime.
        minimum_runtime: the oldest releases that compute it rightly, by package.
        kernels: how many layers ran on each kernel here, where the runtime tells.
        reduction: what was taken out, by the layers' numbers in the checkpoint.
        ranks: of matrices that became two factors, by their names in what is left.
    """

    decoder: Decoder
    chosen: Layouts
    layouts: Mapping[str, int]
    matrices: tuple[StoredMatrix, ...]
    scales: str
    size: Bytes
    read: Bytes
    prove: Callable[[Text, Progress], Proof]
    minimum_runtime: Mapping[str, str] = field(default_factory=dict)
    kernels: Mapping[str, int] = field(default_factory=dict)
    reduction: Reduction = NOTHING
    ranks: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()


class Packer(Protocol):
    """A format.

    Attributes:
        packages: those whose releases decide what is written.
        own_files: by these a folder is known as one that may be written again.
    """

    engine: ClassVar[Engine]
    packages: ClassVar[Sequence[str]]
    own_files: ClassVar[Sequence[str]]

    def refuse(self, source: Checkpoint, target: Target, wanted: Wanted) -> None:
        """What cannot be packed is told before any work."""

    def pack(self, job: Job, out: Path, progress: Progress) -> Written:
        """Writes the network, as it runs, into a folder."""
