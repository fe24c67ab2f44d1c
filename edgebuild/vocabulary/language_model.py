"""A language model's bundle: how it is stored, what it was proven to be, how fast it ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgebuild.vocabulary.contracts import MemoryTrial
from edgebuild.vocabulary.fit import Option, Room
from edgebuild.vocabulary.measurement import Evidence
from edgebuild.vocabulary.units import Bytes, Hertz, Joules, Seconds
from edgebuild.vocabulary.verdict import Verdict

SCHEMA = 1


@dataclass(frozen=True)
class Proof:
    """How far a packed or pruned model is from the float network, over so many tokens.

    Attributes:
        text: what was read; no choice saw it.
        longest: tokens of a stretch: what happens at later places of a context was not compared.
        kl: nats a token, from the float network to the model; `kl_worst` at its worst token.
        agreement: how often both expect the same token first.
        perplexity: of the model; `float_perplexity` of the network.
        answer: what it goes on with, each token the likeliest, after half a stretch of the text.
        answer_text: the same as text.
        where: the machine that both ran on.
    """

    text: str
    tokens: int
    longest: int
    kl: float
    kl_worst: float
    agreement: float
    perplexity: float
    float_perplexity: float
    answer: tuple[int, ...]
    where: str
    answer_text: str = ""
    evidence: Evidence = Evidence.MEASURED


@dataclass(frozen=True)
class Sizes:
    """Of a decoder; `cached_heads` are its groups of heads, `ffn` the feed-forward channels."""

    layers: int
    heads: int
    cached_heads: int
    ffn: int
    parameters: int


@dataclass(frozen=True)
class Shrunk:
    """A checkpoint that was pruned, and distilled from what it was.

    Attributes:
        made_from: names all that it follows from.
        source: the checkpoint's name.
        steps: of the distillation; 0 where there was none.
        pruned: how far it was from the original before any step.
        distilled: how far it is now; None where there was no distillation.
    """

    edgebuild: str
    made_from: str
    source: str
    before: Sizes
    after: Sizes
    steps: int
    pruned: Proof
    distilled: Proof | None
    schema_version: int = SCHEMA


@dataclass(frozen=True)
class StoredMatrix:
    """The matrices of one kind in one layer, its experts together: they are stored alike.

    Attributes:
        kind: the name without the layer's number, as in "self_attn.q_proj".
        layer: None where the network has it once.
        count: matrices, each of so many `elements`; `size` is bytes of all of them.
        sensitivity: nats of KL a token that a relative squared error of one costs, measured on the
            text with its neighbors of the same kind; None where nobody measured.
        loss: nats a token that the layout is expected to cost by that.
    """

    kind: str
    layer: int | None
    layout: str
    count: int
    elements: int
    size: Bytes
    sensitivity: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class LanguageModel:
    """The manifest of a language model's bundle.

    Attributes:
        source: the checkpoint's name; `dtypes` are the types that its tensors were stored in.
        layouts: how many tensors are stored in each way; of a .tflite, how many matrices.
        matrices: all of them, but for the norms, biases and routers, which stay floats.
        scales: what scales were chosen by: extremes, least error, or a text.
        read_bytes: what one token reads of the weights.
        option: what was packed, on the target, by arithmetic; `options` are all precisions that
            are offered there, from the most precise to the smallest.
        proof: None where nothing could be compared, and `unproven` says why.
        files: the SHA-256 of every file but the weights of ONNX, whose index has their hashes.
        format: "onnx" or "tflite".
        minimum_runtime: the oldest releases that compute it rightly, by package.
        kernels: how many layers ran on each kernel where it was built, if the runtime tells.
        removed: layers of the checkpoint that were left out, by number; `narrowed` are the channels
            that were left of feed-forward parts, by number in the checkpoint, too.
        ranks: of matrices that became two factors, by their names in what is left.
    """

    edgebuild: str
    created_at: str
    name: str
    family: str
    source: str
    dtypes: tuple[str, ...]
    target: str
    context: int
    cache: str
    parameters: int
    layouts: Mapping[str, int]
    matrices: tuple[StoredMatrix, ...]
    scales: str
    weights_bytes: Bytes
    read_bytes: Bytes
    option: Option
    options: tuple[Option, ...]
    room: Room
    verdict: Verdict
    notes: tuple[str, ...]
    versions: Mapping[str, str]
    proof: Proof | None = None
    unproven: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    format: str = "onnx"
    minimum_runtime: Mapping[str, str] = field(default_factory=dict)
    kernels: Mapping[str, int] = field(default_factory=dict)
    removed: tuple[int, ...] = ()
    narrowed: Mapping[int, int] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    schema: int = SCHEMA


@dataclass(frozen=True)
class RateTest:
    """One row, with the fields of llama-bench: tokens a second, and nanoseconds a run."""

    test: str
    n_prompt: int
    n_gen: int
    avg_ns: float
    stddev_ns: float
    avg_ts: float
    stddev_ts: float
    samples_ns: tuple[int, ...]
    samples_ts: tuple[float, ...]


@dataclass(frozen=True)
class Rates:
    """What a language model did on a device, in a process of its own.

    Attributes:
        first_token_p50: seconds from a prompt to its first token.
        decode_first: tokens a second in the first quarter of a long answer; `decode_sustained` in
            the last.
        peak: resident memory at most; `anonymous` and `mapped` are held at the end.
        prepacked: whether weights were mapped as the kernels want them.
    """

    rows: tuple[RateTest, ...]
    first_token_p50: Seconds
    first_token_p95: Seconds
    decode_first: Hertz
    decode_sustained: Hertz
    load_seconds: Seconds
    peak: Bytes
    anonymous: Bytes
    mapped: Bytes
    anonymous_before: Bytes
    threads: int
    prepacked: bool
    machine: str

    @property
    def decode(self) -> Hertz:
        """Tokens a second, of the decoding test."""
        return Hertz(next(row.avg_ts for row in self.rows if row.n_gen))


@dataclass(frozen=True)
class BenchedModel:
    """Rates on a device, beside what memory allows there at most.

    Attributes:
        bytes_per_token: what decoding one token reads.
        bandwidth: bytes a second that its threads were seen to read there, in another process.
        memory_trial: what became of a limit that the device kept.
        energy_floor: joules a token that DRAM takes at least; a modelled bound.
    """

    device: str
    bytes_per_token: Bytes
    energy_floor: Joules
    rates: Rates | None = None
    error: str = ""
    memory_trial: MemoryTrial | None = None
    bandwidth: Hertz | None = None

    @property
    def bound(self) -> Hertz | None:
        """Tokens a second at the bandwidth that was measured there."""
        return None if self.bandwidth is None else Hertz(self.bandwidth / self.bytes_per_token)

    @property
    def share(self) -> float | None:
        """Of the bound that was reached."""
        return self.rates.decode / self.bound if self.rates and self.bound else None

    @property
    def is_impossible(self) -> bool:
        """Whether the rate beats the memory: then one of both was not measured right."""
        return self.share is not None and self.share > 1.0
