"""An Android device, or another one that runs adbd, reached by the user's own adb."""

from __future__ import annotations

import contextlib
import re
import subprocess

from edgebuild.devices._link import LinkDropped
from edgebuild.devices._remote import Remote
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.errors import DeviceError, InputError
from edgebuild.vocabulary.silence import Silence

SERIAL = re.compile(r"[\w.][\w.:-]*|\[[0-9a-fA-F:.]+\]:\d+")
IN_NETWORK = re.compile(r".+:\d+")
SOON = 20.0
REASONS = {
    "unauthorized": "it does not trust this computer. Accept the key on its screen",
    "no permissions": "this user may not use its USB port. See `adb devices` for the reason",
    "more than one device": "several devices have this serial. `adb devices` lists them",
}


class Adb(Remote):
    """`adb://SERIAL` for a device that `adb devices` lists, `adb://host:port` for one by TCP."""

    def __init__(self, address: str, progress: Progress | None = None) -> None:
        super().__init__(AdbLink(address), progress or Silence())


class AdbLink:
    """One process of `adb shell` a call; its second protocol passes bytes unchanged."""

    def __init__(self, address: str) -> None:
        self._serial = address.rstrip("/")
        if not SERIAL.fullmatch(self._serial):
            raise InputError(
                f"'adb://{address}' is no address: write adb://SERIAL, as `adb devices` lists it, "
                "or adb://host:port"
            )
        self.name = f"adb://{self._serial}"

    def connect(self) -> None:
        """After a restart of the device, adb only connects once it has disconnected."""
        if not IN_NETWORK.fullmatch(self._serial):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            _adb("disconnect", self._serial)
            # Its exit code is 0 even where it failed; and the next call will tell.
            _adb("connect", self._serial)

    def command(self, text: str) -> list[str]:
        return ["adb", "-s", self._serial, "shell", "-T", text]

    def trouble(self, complaint: str) -> DeviceError:
        last = (complaint.splitlines() or ["the answer broke off"])[-1]
        for words, reason in REASONS.items():
            if words in complaint:
                return DeviceError(f"{self.name}: {reason}")
        if "not found" in complaint or "no devices" in complaint:
            way = (
                f"Does `adb connect {self._serial}` work?"
                if IN_NETWORK.fullmatch(self._serial)
                else "Does `adb devices` list it?"
            )
            return LinkDropped(f"{self.name}: no such device is connected. {way}")
        if "offline" in complaint:
            return LinkDropped(f"{self.name} is offline. Restart it, or plug it in again")
        return LinkDropped(f"the link to {self.name} dropped ({last.removeprefix('error: ')})")


def _adb(*words: str) -> None:
    try:
        subprocess.run(
            ["adb", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SOON,
            check=False,
        )
    except OSError as error:
        raise DeviceError(
            f"adb cannot be started here: {error.strerror}. Is it installed?"
        ) from None
