"""Reads what a phone draws from its battery: amperes times volts of the fuel gauge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from edgebuild.meters._source import FolderSource
from edgebuild.vocabulary.errors import MeterUnavailable
from edgebuild.vocabulary.measurement import Evidence
from edgebuild.vocabulary.power import PowerSample, Sensor
from edgebuild.vocabulary.units import Seconds

# The kernel asks for microamperes and a minus sign where the battery is discharged; vendors give
# milliamperes, too, and either sign. No phone that runs draws less than 10 mA or more than 10 A.
MICROAMPERES_FROM = 10_000
# No battery has less than 100 mV or more than 100 V.
MICROVOLTS_FROM = 100_000
# Supplies that are the battery itself: to be online means nothing there.
GAUGES = {"Battery", "BMS"}


@dataclass(frozen=True)
class Habit:
    """How this model writes its current: the unit, and the sign of a discharge."""

    unit: str
    sign: str


@dataclass
class Battery(FolderSource):
    """The battery of a phone or tablet that is not plugged in."""

    root: ClassVar[str] = "/sys/class/power_supply"
    _supply: str = field(default="", init=False)
    _habit: Habit = field(default=Habit("", ""), init=False)

    def sensor(self) -> Sensor:
        """The battery, with the unit and sign that its current is taken to have.

        Raises:
            MeterUnavailable: there is no battery, it is being charged, or nobody may read it.
        """
        found = self._read()
        self._supply = _battery(found, self.folder.path)
        self._habit = _habit(_discharging(found, self._supply))
        unit, sign = self._habit.unit, self._habit.sign
        return Sensor(
            name="battery",
            scope=f"{self._supply}: the whole device, screen and radio included",
            period=Seconds(0.5),
            evidence=Evidence.MEASURED,
            is_whole=True,
            note=f"current_now taken as {unit}, {sign} while discharging; the gauge may average",
            source=self.source,
        )

    def read(self) -> Sequence[PowerSample]:
        """The power that leaves the battery now.

        Raises:
            MeterUnavailable: it is being charged, or its current no longer reads as it did.
        """
        if not self._supply:
            self.sensor()
        return self.sample(self._watts)

    def _watts(self) -> float:
        found = self._read()
        current = _discharging(found, self._supply)
        if current and _habit(current) != self._habit:
            raise MeterUnavailable(
                f"battery: current_now went to {current:g}, which is not {self._habit.unit}, "
                f"{self._habit.sign} while discharging: is it being charged in between?"
            )
        amperes = abs(current) / (1e6 if self._habit.unit == "µA" else 1e3)
        return amperes * _volts(found, self._supply)

    def _read(self) -> dict[str, str]:
        """Of all supplies, because a plugged charger falsifies what the battery says."""
        files = ("type", "status", "online", "current_now", "voltage_now")
        return self.folder.read(*(f"*/{file}" for file in files))


def _battery(found: Mapping[str, str], where: str) -> str:
    """The supply to read: Android's own name for it, or the first that has both figures."""
    batteries = [
        path.removesuffix("/type")
        for path, kind in sorted(found.items())
        if path.endswith("/type") and kind == "Battery"
    ]
    if not batteries:
        raise MeterUnavailable(f"battery: none in {where}")
    whole = [
        name for name in batteries if {f"{name}/current_now", f"{name}/voltage_now"} <= set(found)
    ]
    if not whole:
        raise MeterUnavailable(
            f"battery: {batteries[0]}/current_now and voltage_now cannot be read in {where}"
        )
    return "battery" if "battery" in whole else whole[0]


def _discharging(found: Mapping[str, str], supply: str) -> float:
    """The current as it is written, while nothing else feeds the device."""
    plugged = [
        name
        for name in sorted(path.removesuffix("/type") for path in found if path.endswith("/type"))
        if found[f"{name}/type"] not in GAUGES and found.get(f"{name}/online", "0") != "0"
    ]
    if plugged:
        raise MeterUnavailable(
            f"battery: {', '.join(plugged)} is plugged in, and feeds what the battery does not "
            "show: unplug it, and reach the device by Wi-Fi"
        )
    status = found.get(f"{supply}/status", "Unknown")
    if status != "Discharging":
        raise MeterUnavailable(f"battery: its status is {status}, not Discharging")
    return _number(found, f"{supply}/current_now")


def _habit(current: float) -> Habit:
    if current == 0:
        raise MeterUnavailable("battery: current_now is 0: this gauge does not show a current")
    unit = "µA" if abs(current) >= MICROAMPERES_FROM else "mA"
    return Habit(unit, "negative" if current < 0 else "positive")


def _volts(found: Mapping[str, str], supply: str) -> float:
    written = _number(found, f"{supply}/voltage_now")
    volts = written / (1e6 if written >= MICROVOLTS_FROM else 1e3)
    if volts < 1:
        raise MeterUnavailable(f"battery: voltage_now is {written:g}, in no unit that is known")
    return volts


def _number(found: Mapping[str, str], file: str) -> float:
    try:
        return float(found[file])
    except (KeyError, ValueError):
        raise MeterUnavailable(f"battery: {file} shows no number") from None
