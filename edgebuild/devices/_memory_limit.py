"""A memory limit that the kernel keeps, by a control group of either version."""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgebuild.vocabulary.contracts import Fit, MemoryTrial
from edgebuild.vocabulary.units import Bytes, format_size


@dataclass(frozen=True)
class _Version:
    """The names that one version of control groups gives to the same things."""

    limit: str
    no_swap: dict[str, str]
    kills: str
    peak: str


V1 = _Version(
    "memory.limit_in_bytes",
    {"memory.swappiness": "0"},
    "memory.oom_control",
    "memory.max_usage_in_bytes",
)
V2 = _Version("memory.max", {"memory.swap.max": "0"}, "memory.events", "memory.peak")


@dataclass(frozen=True)
class Group:
    """A control group with a limit; a process joins by writing its id into `joined_by`."""

    folder: Path
    version: _Version
    limit: Bytes

    @property
    def joined_by(self) -> Path:
        return self.folder / "cgroup.procs"

    def kills(self) -> int:
        """How many of its processes the kernel has killed for want of memory."""
        found = re.search(r"^oom_kill (\d+)$", (self.folder / self.version.kills).read_text(), re.M)
        return int(found[1]) if found else 0

    def trial(self, kills_before: int) -> MemoryTrial:
        """What became of the commands since the counter was read."""
        kills = self.kills()
        file = self.folder / self.version.peak
        peak = Bytes(int(file.read_text())) if file.exists() else None
        counter = f"oom_kill {kills_before} → {kills}"
        used = f", at most {format_size(peak)} of {format_size(self.limit)}" if peak else ""
        fit = Fit.OOM_KILLED if kills > kills_before else Fit.FITS
        return MemoryTrial(fit, self.limit, peak, f"{self.version.kills}: {counter}{used}")


@contextmanager
def memory_limit(
    limit: Bytes, processes: Path = Path("/proc/self")
) -> Iterator[Group | MemoryTrial]:
    """A group for as long as it is needed, or the reason why nothing keeps the limit here."""
    reason = "no control group for memory is mounted"
    for folder, version in _places(processes):
        group = Group(folder, version, limit)
        try:
            folder.mkdir()
        except OSError as error:
            reason = f"no control group can be made in {folder.parent}: {error.strerror}"
            continue
        try:
            if reason := _refusal(group):
                continue
            yield group
            return
        finally:
            _remove(folder)
    yield MemoryTrial(Fit.NOT_ENFORCED, limit, None, reason)


def _remove(folder: Path) -> None:
    """Processes that were killed leave a moment later; a folder left empty does no harm."""
    for _ in range(20):
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.05)


def _places(processes: Path) -> Iterator[tuple[Path, _Version]]:
    """Where a group could be made: within our own, else, where a container hides it, at the top."""
    name = Path(tempfile.mktemp(prefix="edgebuild-", dir="")).name
    own = _own_groups((processes / "cgroup").read_text())
    for line in (processes / "mounts").read_text().splitlines():
        _, mount, kind, options, *_ = line.split()
        if kind == "cgroup" and "memory" in options.split(","):
            version, path = V1, own.get("memory", "/")
        elif kind == "cgroup2":
            version, path = V2, own.get("", "/")
        else:
            continue
        for parent in dict.fromkeys((Path(mount) / path.lstrip("/"), Path(mount))):
            if parent.is_dir():
                yield parent / name, version


def _own_groups(text: str) -> dict[str, str]:
    """Our path by controller, from /proc/self/cgroup; version 2 has the empty name."""
    groups = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), path))
    return groups


def _refusal(group: Group) -> str:
    """Sets the limit; says why it does not hold, or nothing."""
    file = group.folder / group.version.limit
    if not file.exists():
        return f"{group.folder.parent} has no memory controller for groups within it"
    try:
        file.write_text(str(group.limit))
        for name, value in group.version.no_swap.items():
            if (group.folder / name).exists():
                (group.folder / name).write_text(value)
    except OSError as error:
        return f"{file} cannot be written: {error.strerror}"
    return ""
