"""Says why a device is not the target, so that its times judge nothing of the target's budget."""

from __future__ import annotations

from edgebuild.vocabulary.contracts import Device
from edgebuild.vocabulary.target import Target
from edgebuild.vocabulary.units import Seconds

MOMENT = Seconds(60.0)
# How a kernel calls the machines of an instruction set.
MACHINES = {"armv8": "aarch64", "armv9": "aarch64", "x86": "x86_64"}
# This machine as a device, whole: a twin of another has a name of its own.
WHOLE = "host"


def why_not_target(device: Device, where: str, target: Target) -> str:
    """The reason, or nothing where the device can be the target; `where` names it in full.

    Raises:
        DeviceError: it cannot say which machine it is.
    """
    if is_elsewhere(device, target):
        return f"measured on {where}, which is not {target.name}"
    if device.is_here and device.name != WHOLE:
        return f"measured on {device.name}, whose times are this machine's"
    done = device.run(["uname", "-m"], MOMENT)
    return other_processor(device, target, done.stdout.strip())


def is_elsewhere(device: Device, target: Target) -> bool:
    """Whether one is this machine and the other is not, or the device keeps no time."""
    return device.is_here != target.is_this_machine or not device.keeps_time


def other_processor(device: Device, target: Target, machine: str) -> str:
    """ "jetson is aarch64, and host is x86_64", or nothing where it has the target's processor."""
    wanted = machine_of(target)
    if wanted in ("", machine):
        return ""
    return f"{device.name} is {machine}, and {target.name} is {wanted}"


def machine_of(target: Target) -> str:
    """Such as "aarch64"; "" of an instruction set that is not known here."""
    return next((m for isa, m in MACHINES.items() if target.compute.isa.startswith(isa)), "")
