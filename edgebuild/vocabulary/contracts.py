"""What a plugin must be able to do: one file of floor 2 keeps one of these contracts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from edgebuild.vocabulary.artifact import Artifact, KernelRun
from edgebuild.vocabulary.calibration import KernelSample, ProfileEffort
from edgebuild.vocabulary.offer import Choice, Offer, Part
from edgebuild.vocabulary.power import PowerSample, Sensor
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.program import Site
from edgebuild.vocabulary.recipe import Candidate
from edgebuild.vocabulary.silence import Silence
from edgebuild.vocabulary.target import RuntimeFacts
from edgebuild.vocabulary.units import Bytes, Seconds

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from edgebuild.vocabulary.workload import Workload


class Stage(IntEnum):
    """When a method acts; the order of the stages is the order of the line."""

    SHRINK = 1
    FACTORIZE = 2
    RECOVER = 3
    ROUND = 4


@dataclass(frozen=True)
class Workplace:
    """Where a method says how far it is, and keeps what a killed run goes on from."""

    progress: Progress
    scratch: Path | None = None


# Where nobody watches, and nothing is kept.
WORKPLACE = Workplace(Silence())


class Method(Protocol):
    """A way to make networks lighter: a frozen dataclass whose fields are its settings."""

    stage: ClassVar[Stage]

    def offers(self, workload: Workload, runtime: RuntimeFacts) -> Iterator[Offer]:
        """What it could do to the workload's network for a runtime, part by part.

        Every offer is one that `apply` can carry out, together with any one offer of each other
        part.
        """
        ...

    def declined(self, workload: Workload, runtime: RuntimeFacts) -> Mapping[str, str]:
        """Why it offers nothing, by the path of what it might have changed; empty for the whole."""
        ...

    def apply(
        self,
        network: nn.Module,
        chosen: Mapping[Part, Choice],
        workload: Workload,
        workplace: Workplace = WORKPLACE,
    ) -> nn.Module:
        """A changed copy of the network, in eval mode; the network itself is left as it was.

        The network may differ from the workload's own, which is the teacher, by what methods of
        earlier stages did to it.

        Raises:
            MethodFailed: a choice that cannot be carried out; names the part and the reason.
        """
        ...


class Precisions(Protocol):
    """Which precisions a layer may have on a target; exporters realize the chosen one."""

    def choices(
        self, sites: Sequence[Site], runtime: RuntimeFacts
    ) -> Iterator[tuple[Site, Choice]]:
        """What it offers at which layer, most preferred first."""
        ...

    def refusal(self, site: Site, choice: Choice, runtime: RuntimeFacts) -> str:
        """Why it does not offer a choice at a layer; empty where it does."""
        ...


class Exporter(Protocol):
    """One file format: turns a network with a precision per layer into the format's kernels."""

    format: ClassVar[str]
    suffix: ClassVar[str]
    runtime: ClassVar[str]

    def refusal(self, kind: LayerKind, precision: Precision) -> str:
        """Why the format has no such kernel; empty where it has one."""
        ...

    def export(self, candidate: Candidate, folder: Path) -> Artifact:
        """Writes the artifact into the folder.

        Raises:
            NotExportable: an operator that the format does not have.
        """
        ...


class Device(AbstractContextManager["Device"], Protocol):
    """A machine that runs commands; entering it connects, leaving it cleans up.

    Made from what follows the scheme in its URL, and the progress that copies are shown on. `name`
    tells it from every other device: it stands beside each figure that was measured there.
    `is_here` where it computes on this machine, whose other work it would disturb; `keeps_time`
    where its latencies are a device's, which those of an emulated processor are not.
    """

    name: str
    is_here: bool
    keeps_time: bool

    @property
    def identity(self) -> str:
        """Names the machine, whatever it is reached by, and its runtimes: what figures hold for."""
        ...

    def push(self, path: Path) -> str:
        """Makes a local file or folder available there; returns its path there."""
        ...

    def run(self, command: Sequence[str], deadline: Seconds) -> Completed:
        """Runs a command there; a first word "python" is that machine's Python.

        Raises:
            DeviceError: it could not be started, or exceeded the deadline.
        """
        ...

    def glance(self, command: Sequence[str]) -> Completed:
        """Runs a command of a moment at once, also while another one runs there.

        Raises:
            DeviceError: it could not be started, or does not answer.
        """
        ...

    def pull(self, remote: str, path: Path) -> None:
        """Copies a file or folder from there."""
        ...


class Fit(StrEnum):
    """What became of a command under a memory limit."""

    FITS = "FITS"
    OOM_KILLED = "OOM_KILLED"
    NOT_ENFORCED = "NOT_ENFORCED"


@dataclass(frozen=True)
class MemoryTrial:
    """A command under a limit; the evidence is the kernel's counter, or why there is none."""

    fit: Fit
    limit: Bytes
    peak: Bytes | None
    evidence: str


@dataclass(frozen=True)
class Completed:
    """How a command on a device ended; `memory` where the device had a limit to keep."""

    returncode: int
    stdout: str
    stderr: str
    memory: MemoryTrial | None = None

    @property
    def reason(self) -> str:
        """The last line that it complained with, or its exit code."""
        return (self.stderr.strip().splitlines() or [f"exit code {self.returncode}"])[-1]


class Meter(Protocol):
    """What reads power: here, on a device, or from the file that an external meter writes.

    It is made from a source (a root of sysfs, a file; empty for where it is on a real machine) and
    a device to read it on (None for this machine).
    """

    def sensor(self) -> Sensor:
        """What it sees.

        Raises:
            MeterUnavailable: it is not there, or what it would show is not what is drawn.
        """
        ...

    def read(self) -> Sequence[PowerSample]:
        """What it has shown since it was read before; a counter shows nothing at first.

        Raises:
            MeterUnavailable: it cannot be read any more; says why.
        """
        ...


class Runtime(Protocol):
    """What runs an artifact, and can say which kernels it used.

    `package` is what pip calls it, and `module` what Python imports.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    module: ClassVar[str]

    def version(self) -> str:
        """The release that is installed here."""
        ...

    def kernels(self, artifact: Artifact, samples: Samples) -> Iterator[KernelRun]:
        """The kernels of one run, from the runtime's own graph and profile."""
        ...

    def profiling(
        self,
        artifact: Artifact,
        samples: Samples,
        device: Device,
        threads: int,
        effort: ProfileEffort,
    ) -> list[str]:
        """The script, and its arguments, that has the runtime profile an artifact on a device.

        Raises:
            DeviceError: the device does not take the files.
        """
        ...

    def timings(self, artifact: Artifact, said: str) -> Iterator[KernelSample]:
        """What each kernel takes, by what that script has printed."""
        ...


class Samples(Protocol):
    """Stored samples: one row after the other, each input with batch 1."""

    @property
    def folder(self) -> Path: ...

    def rows(self, limit: int | None = None) -> Iterator[tuple[np.ndarray, ...]]: ...


class Step(Protocol):
    """One bar of progress."""

    def advance(self, note: str = "") -> None: ...


class Progress(Protocol):
    """Where long work says how far it is."""

    def step(self, title: str, total: int | None = None) -> AbstractContextManager[Step]: ...

    def say(self, text: str) -> None: ...
