"""A device behind a link: it keeps copies for the next time, and results until they are fetched."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from edgebuild.cache import digest
from edgebuild.devices._copies import Copies
from edgebuild.devices._jobs import Jobs
from edgebuild.devices._link import Link
from edgebuild.devices._patience import Patience
from edgebuild.vocabulary.contracts import Completed, Progress
from edgebuild.vocabulary.errors import DeviceError
from edgebuild.vocabulary.units import Seconds

# The scripts are POSIX sh; these are the programs beside it that they need.
PROGRAMS = (
    "cat chmod dd df find grep kill ln mkdir mv printf readlink rm setsid sha256sum sleep tail "
    "touch wc"
)
ENTER = """
root=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/edgebuild-device
[ -w /data/local/tmp ] && root=/data/local/tmp/edgebuild-device
for program in $1; do
    command -v "$program" >/dev/null || { echo "lacks $program"; exit; }
done
mkdir -p "$root/files" "$root/jobs" || exit
find "$root/files" -mindepth 1 -maxdepth 1 -mtime +7 -exec rm -rf {} + 2>/dev/null
find "$root/jobs" -mindepth 2 -maxdepth 2 -name result -mmin +60 2>/dev/null |
    while read -r result; do rm -rf "${result%/*}"; done
echo "is $root"
"""


# The installation's own number, the processor without what changes from moment to moment, and what
# is installed for Python.
IDENTIFY = r"""
cat /etc/machine-id 2>/dev/null
getprop ro.serialno 2>/dev/null
grep -E "^(model name|flags|Features|CPU|Hardware|Revision|Serial|Model)" /proc/cpuinfo
python=$(command -v python3 || command -v python) || exit 0
"$python" -c '
from importlib.metadata import distributions
print(sorted((each.metadata["Name"], each.version) for each in distributions()))'
"""


class Remote:
    """What ssh and adb have in common, which is all but how to reach a shell."""

    is_here = False
    keeps_time = True

    def __init__(self, link: Link, progress: Progress) -> None:
        self.name = link.name
        self._link = link
        self._patience = Patience(link)
        self._copies = Copies(self._patience, progress)
        self._jobs = Jobs(self._patience)
        self._root = ""

    def __enter__(self) -> Self:
        self._link.connect()
        answer = self._patience.ask(ENTER, PROGRAMS)
        word, _, rest = answer.text.partition(" ")
        if word == "lacks":
            raise DeviceError(f"{self.name} lacks {rest}, a program that every busybox has")
        if word != "is":
            raise DeviceError(f"{self.name}: no folder can be made there. Is its disk full?")
        self._root = rest
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends what still runs there, as after Ctrl-C; also called while another thread waits."""
        self._patience.end()
        self._jobs.cancel(self._root)

    @cached_property
    def identity(self) -> str:
        return digest(self._patience.insist(lambda: self._patience.ask(IDENTIFY)).text)

    def push(self, path: Path) -> str:
        return self._copies.push(self._root, path)

    def pull(self, remote: str, path: Path) -> None:
        self._copies.pull(remote, path)

    def glance(self, command: Sequence[str]) -> Completed:
        answer = self._patience.ask('exec "$@" 2>&1', *command)
        return Completed(answer.code, answer.text, answer.text if answer.code else "")

    def run(self, command: Sequence[str], deadline: Seconds) -> Completed:
        return self._jobs.run(self._root, command, deadline)
