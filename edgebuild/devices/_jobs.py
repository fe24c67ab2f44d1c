"""Runs commands on a device as jobs of their own, which outlive the link that began them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import PurePosixPath

from edgebuild import cache
from edgebuild.devices._link import script
from edgebuild.devices._patience import Patience
from edgebuild.vocabulary.contracts import Completed
from edgebuild.vocabulary.errors import DeviceError
from edgebuild.vocabulary.units import Seconds

FORGET = 'rm -rf "$1/jobs/$2"'
CANCEL = """
process=$(cat "$1/jobs/$2/process") 2>/dev/null
process=${process%%.*}
[ -z "$process" ] || kill -TERM "$process" 2>/dev/null
for pause in 1 1 1; do
    [ -n "$process" ] && kill -0 "$process" 2>/dev/null || break
    sleep "$pause"
done
rm -rf "$1/jobs/$2"
"""


class Jobs:
    """Each begins once, however often it is asked for, and keeps its result until it is fetched."""

    def __init__(self, patience: Patience) -> None:
        self._name = patience.link.name
        self._patience = patience
        self._running: set[str] = set()

    def run(self, root: str, command: Sequence[str], deadline: Seconds) -> Completed:
        """Detached there: a dropped link loses nothing, and the deadline is kept without us."""
        # The same command after a lost link finds its job, and perhaps its result.
        job = cache.digest(list(command))[:20]
        self._running.add(job)
        try:
            reply = self._reply(root, job, command, deadline)
            self._patience.insist(lambda: self._patience.ask(FORGET, root, job))
        except DeviceError:
            # Out of reach: it keeps its result for an hour, or ends at its deadline.
            self._running.discard(job)
            raise
        self._running.discard(job)
        first, _, rest = reply.partition(b"\n")
        return self._completed(first.decode(errors="replace").split(), rest, command, deadline)

    def _reply(self, root: str, job: str, command: Sequence[str], deadline: Seconds) -> bytes:
        """What the job says when it no longer runs: a line, and what the command printed."""
        words = (script("job"), root, job, str(max(round(deadline), 1)), *command)
        # Another job may have had as long before it.
        ends = time.monotonic() + 2 * deadline + 120
        reply = b"running"
        while reply.strip() == b"running":
            if self._patience.is_over:
                # A call that was under way then may have begun it again.
                self._patience.ask(CANCEL, root, job)
                self._patience.refuse_once_left()
            if time.monotonic() > ends:
                raise DeviceError(f"{self._name}: {command[0]} does not end, nor say why")
            reply = self._patience.insist(
                lambda: self._patience.ask(script("start"), *words)
            ).output
        return reply

    def _completed(
        self, state: list[str], rest: bytes, command: Sequence[str], deadline: Seconds
    ) -> Completed:
        program = PurePosixPath(command[0]).name
        match state:
            case ["no-python"]:
                raise DeviceError(
                    f"there is no Python on {self._name}: install python3, numpy and the runtime"
                )
            case ["no-program"]:
                raise DeviceError(f"{program} cannot be started on {self._name}: it is not there")
            case ["late", *_]:
                raise DeviceError(
                    f"{program} did not end within {deadline:.0f} s on {self._name}; it was stopped"
                )
            case ["busy", *_]:
                raise DeviceError(f"{self._name} is busy with another job. Try again later")
            case [code, out, err] if code.isdigit():
                stdout, stderr = rest[: int(out)], rest[int(out) : int(out) + int(err)]
                return Completed(
                    _as_here(int(code)),
                    stdout.decode(errors="replace"),
                    stderr.decode(errors="replace"),
                )
        raise DeviceError(
            f"{self._name} lost the result of {program}. Was it restarted, or is its disk full?"
        )

    def cancel(self, root: str) -> None:
        """Ends what still runs; what cannot be told so ends at its deadline."""
        for job in list(self._running):
            with contextlib.suppress(DeviceError):
                self._patience.ask(CANCEL, root, job)


def _as_here(code: int) -> int:
    """A shell's 128 + n for a command that a signal ended, as Python's -n."""
    return 128 - code if 128 < code <= 128 + 64 else code
