"""A content-addressed store: what was computed once from the same things is not computed again."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = (
    "torch",
    "torch-pruning",
    "numpy",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "litert-torch",
    "ai-edge-quantizer",
    "ai-edge-litert",
    "litert-converter",
    "torchao",
    "jax",
    "onnx-ir",
    "ml-dtypes",
    "protobuf",
)


def default_root() -> Path:
    """`$EDGEBUILD_CACHE`, or the user's cache folder (XDG Base Directory)."""
    if explicit := os.environ.get("EDGEBUILD_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgebuild"


def digest(*parts: object) -> str:
    """Names a value by its content; parts must be JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@functools.cache
def toolchain() -> str:
    """Names everything that computes entries: edgebuild's own code and the libraries' releases.

    Part of every key, so that neither an upgrade nor an edit ever meets an entry made before it.
    """
    code = sorted(Path(__file__).parent.rglob("*.py"))
    sources = [hashlib.sha256(file.read_bytes()).hexdigest() for file in code]
    return digest(sources, [importlib.metadata.version(package) for package in LIBRARIES])


@functools.cache
def this_machine() -> str:
    """Names what decides speed and kernels here: the processor with its features, and the cores.

    Part of the key of whatever is measured: another machine may share the cache.
    """
    words = ("model", "flags", "Features", "CPU part", "cpu family", "stepping")
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    known = sorted({line for line in lines if line.startswith(words)})
    return digest(platform.machine(), known, os.cpu_count())


@dataclass(frozen=True)
class Cache:
    """Folders by content; an entry is there whole or not at all, whatever killed its maker."""

    root: Path

    def entry(self, kind: str, key: str, make: Callable[[Path], None]) -> Path:
        """The folder of a kind and key, filled by `make` the first time.

        An interrupted or failed `make` leaves nothing behind.
        """
        final = self.root / kind / digest(key, toolchain())
        if not final.is_dir():
            with self._scratch(kind) as scratch:
                make(scratch)
                _publish(scratch, final)
        return final

    def scratch(self, kind: str, key: str) -> Path:
        """A folder for what an interrupted `make` goes on from; `forget` it when that is done."""
        folder = self.root / f"{kind}-unfinished" / digest(key, toolchain())
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def forget(self, entry: Path) -> None:
        """Removes an entry, so that it is made anew the next time."""
        shutil.rmtree(entry, ignore_errors=True)

    @contextmanager
    def adopt(self, kind: str) -> Iterator[tuple[Path, Callable[[str], Path]]]:
        """A scratch folder, and a call that files it under a key known only once it is filled."""
        with self._scratch(kind) as scratch:

            def publish(key: str) -> Path:
                final = self.root / kind / key
                _publish(scratch, final)
                return final

            yield scratch, publish

    @contextmanager
    def _scratch(self, kind: str) -> Iterator[Path]:
        parent = self.root / kind
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        scratch = Path(tempfile.mkdtemp(prefix=f".part-{os.getpid()}-", dir=parent))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _publish(scratch: Path, final: Path) -> None:
    try:
        scratch.rename(final)
    except OSError:
        # Somebody else was faster with the same content; theirs serves as well.
        if not final.is_dir():
            raise


def _sweep(parent: Path) -> None:
    """Removes what processes that no longer live have left half-made."""
    for part in parent.glob(".part-*"):
        if not _lives(int(part.name.split("-")[1])):
            shutil.rmtree(part, ignore_errors=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
