"""An ARM64 processor, emulated: its code and its bits are real, its time means nothing."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from edgebuild.arm64 import Lines, Parts, parts
from edgebuild.devices.local import Local
from edgebuild.vocabulary.contracts import Completed, Progress
from edgebuild.vocabulary.errors import DeviceError, InputError, did_you_mean
from edgebuild.vocabulary.units import Seconds


@dataclass(frozen=True)
class Cpu:
    """What a processor tells a program of itself: its part number at ARM, and its features."""

    part: int
    features: str


ARMV8_0 = "fp asimd aes pmull sha1 sha2 crc32 cpuid"
ARMV8_2 = (
    "fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
)
# As QEMU 7.2 emulates them, in the kernel's words (arch/arm64/kernel/cpuinfo.c).
CPUS = {
    "cortex-a35": Cpu(0xD04, ARMV8_0),
    "cortex-a53": Cpu(0xD03, ARMV8_0),
    "cortex-a57": Cpu(0xD07, ARMV8_0),
    "cortex-a72": Cpu(0xD08, ARMV8_0),
    "cortex-a76": Cpu(0xD0B, ARMV8_2),
    "neoverse-n1": Cpu(0xD0C, ARMV8_2),
}
# Which one is meant by `emulated:` alone.
USUAL = "cortex-a76"
BLOCK = """\
processor\t: {number}
BogoMIPS\t: 100.00
Features\t: {features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: {part:#x}
CPU revision\t: 0

"""
# What an emulated program must not get from here.
HOST_VARIABLES = ("LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONHOME", "PYTHONSTARTUP")
ASK = """
import ctypes, json, os
library = ctypes.CDLL(None)
library.getauxval.restype = ctypes.c_ulong
print(json.dumps([os.uname().machine, library.getauxval(16)]))
"""
# Bits of the auxiliary vector's AT_HWCAP (arch/arm64/include/uapi/asm/hwcap.h).
BITS = (
    *("fp", "asimd", "evtstrm", "aes", "pmull", "sha1", "sha2", "crc32", "atomics", "fphp"),
    *("asimdhp", "cpuid", "asimdrdm", "jscvt", "fcma", "lrcpc", "dcpop", "sha3", "sm3", "sm4"),
    "asimddp",
)


class Emulated(Local):
    """Runs ARM64 programs by QEMU, one process each; "python" has numpy and both runtimes.

    Files are where they are here; what the emulator needs is fetched the first time.
    """

    # Measuring on it would yield figures that look like a device's.
    keeps_time = False

    def __init__(self, cpu: str = "", progress: Progress | None = None) -> None:
        super().__init__()
        cpu = cpu or USUAL
        if cpu not in CPUS:
            raise InputError(f"no processor {cpu!r} is emulated.{did_you_mean(cpu, CPUS)}")
        self.cpu = cpu
        self.name = f"emulated {cpu}"

    def __enter__(self) -> Self:
        """Makes sure that the processor is the one that was asked for.

        Raises:
            DeviceError: the emulator cannot be fetched, or emulates something else.
        """
        done = self.run(["python", "-c", ASK], Seconds(60.0))
        if done.returncode != 0:
            raise DeviceError(f"{self.name} does not run Python: {done.reason}")
        machine, bits = json.loads(done.stdout)
        features = {name for bit, name in enumerate(BITS) if bits >> bit & 1}
        if machine != "aarch64" or features != set(CPUS[self.cpu].features.split()):
            raise DeviceError(
                f"{self.name} calls itself {machine} with {' '.join(sorted(features))}"
            )
        self.name = f"{self.cpu}, emulated by QEMU {self._parts.emulator_release}"
        return self

    def run(self, command: Sequence[str], deadline: Seconds) -> Completed:
        program, *arguments = command
        program = str(self._parts.python) if program == "python" else program
        without = [word for name in HOST_VARIABLES for word in ("-U", name)]
        # For the emulated process alone: exported, this would mislead every Python here.
        own = ["-E", f"PYTHONPATH={self._parts.site}", "-E", "PYTHONDONTWRITEBYTECODE=1"]
        emulator = [str(self._parts.emulator), "-cpu", self.cpu, "-L", self._root.name]
        return super().run([*emulator, *without, *own, program, *arguments], deadline)

    @cached_property
    def _parts(self) -> Parts:
        return parts(Lines())

    @cached_property
    def _root(self) -> tempfile.TemporaryDirectory[str]:
        """Debian's root beside a /proc/cpuinfo of this processor.

        The runtimes choose kernels by it; left to read the one that is here, they crash.
        """
        root = tempfile.TemporaryDirectory(prefix="edgebuild-arm64-")
        for entry in self._parts.root.iterdir():
            (Path(root.name) / entry.name).symlink_to(entry)
        (Path(root.name) / "proc").mkdir()
        cpu = CPUS[self.cpu]
        blocks = (
            BLOCK.format(number=number, features=cpu.features, part=cpu.part)
            for number in range(os.cpu_count() or 1)
        )
        (Path(root.name) / "proc/cpuinfo").write_text("".join(blocks))
        return root
