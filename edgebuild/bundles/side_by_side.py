"""Does the same work on several devices at once; one that fails does not stop the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TypeVar

from edgebuild.vocabulary.contracts import Device
from edgebuild.vocabulary.errors import EdgebuildError

FoundT = TypeVar("FoundT")


def side_by_side(
    devices: Mapping[str, Device],
    work: Callable[[str, Device], FoundT],
    failed: Callable[[str, Device, EdgebuildError], FoundT],
) -> tuple[FoundT, ...]:
    """What the work comes to on each device, by the names that they were given.

    Of devices that are this machine one works at a time: two would measure each other.
    """
    here = threading.Lock()

    def one(name: str, device: Device) -> FoundT:
        try:
            with here if device.is_here else nullcontext(), device:
                return work(name, device)
        except EdgebuildError as error:
            return failed(name, device, error)

    with ThreadPoolExecutor(len(devices)) as pool:
        running = [pool.submit(one, *named) for named in devices.items()]
        try:
            return tuple(future.result() for future in running)
        except BaseException:
            # What waits for a device must not keep Ctrl-C waiting.
            for device in devices.values():
                device.__exit__(None, None, None)
            raise
