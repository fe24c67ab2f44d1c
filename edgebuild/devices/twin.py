"""This machine with no more memory and cores than a target has: what fits there fits here."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace

from edgebuild.devices._memory_limit import memory_limit
from edgebuild.devices.local import Local
from edgebuild.inputs.target_file import load_target
from edgebuild.vocabulary.contracts import Completed, MemoryTrial, Progress
from edgebuild.vocabulary.errors import DeviceError, InputError
from edgebuild.vocabulary.units import Bytes, Seconds, format_size, parse_size

# Joins the group and the cores before it becomes the command, so that every byte counts.
LAUNCHER = """
import os, sys
procs, cores, *command = sys.argv[1:]
if procs:
    open(procs, "w").write(str(os.getpid()))
os.sched_setaffinity(0, map(int, cores.split(",")))
os.execv(command[0], command)
"""


class Twin(Local):
    """`twin:TARGET` or `twin:256MB`: FITS or OOM_KILLED, by the kernel's own counter.

    Its times are this machine's. Cores are taken away whole: a quota of time would stall runs for
    a tenth of a second each, which no device does.
    """

    def __init__(self, address: str = "", progress: Progress | None = None) -> None:
        super().__init__(address, progress)
        self._limit, cores = _limits(address)
        self._cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores]))
        self.name = f"this machine with the memory of {address} ({format_size(self._limit)})"

    def run(self, command: Sequence[str], deadline: Seconds) -> Completed:
        """As on this machine, and says what became of it under the limit."""
        with memory_limit(self._limit) as limit:
            if isinstance(limit, MemoryTrial):
                return replace(self._launch("", command, deadline), memory=limit)
            kills = limit.kills()
            done = self._launch(str(limit.joined_by), command, deadline)
            return replace(done, memory=limit.trial(kills))

    def _launch(self, joined_by: str, command: Sequence[str], deadline: Seconds) -> Completed:
        program, *arguments = command
        found = sys.executable if program == "python" else shutil.which(program)
        if found is None:
            raise DeviceError(f"{program} cannot be started: it is not there")
        launcher = [sys.executable, "-c", LAUNCHER, joined_by, self._cores]
        return super().run([*launcher, found, *arguments], deadline)


def _limits(address: str) -> tuple[Bytes, int | None]:
    """The memory that an application may take, and the cores where a target says how many."""
    if not address:
        raise InputError("twin: needs a target or a size, as twin:robot-raspberry-pi-5, twin:256MB")
    if address[0].isdigit():
        return parse_size(address), None
    target = load_target(address)
    return target.app_memory, target.compute.cores
