"""Reads the INA3221 chips of a Jetson: volts times amperes of each rail, from hwmon."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from edgebuild.meters._folder import Folder
from edgebuild.vocabulary.contracts import Device
from edgebuild.vocabulary.errors import MeterUnavailable
from edgebuild.vocabulary.measurement import Evidence
from edgebuild.vocabulary.power import PowerSample, Sensor
from edgebuild.vocabulary.units import Seconds, Watts

ROOT = "/sys/class/hwmon"
# Which rails add up to the module. Orin Nano, Orin NX and Xavier NX measure its input; AGX Orin
# has three inputs, and its memory's rail (VDDQ_VDD2_1V8AO) hangs behind the third.
MODULES = (
    frozenset({"VDD_IN"}),
    frozenset({"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"}),
)
# What a channel is called that is connected to nothing.
UNCONNECTED = {"NC", ""}


class Ina3221:
    """The rails that make up the module; all labeled ones where it is not known which do."""

    def __init__(
        self,
        source: str = "",
        device: Device | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._folder = Folder(source or ROOT, device)
        self._clock = clock
        # From a rail's name to its files for volts and amperes.
        self._files: dict[str, tuple[str, str]] = {}

    def sensor(self) -> Sensor:
        """The rails that it reads.

        Raises:
            MeterUnavailable: there is no such chip, or no rail of it is labeled.
        """
        rails = self._rails()
        module = next((names for names in MODULES if names <= set(rails)), None)
        self._files = {name: rails[name] for name in sorted(module or rails)}
        names = " + ".join(self._files)
        return Sensor(
            name="ina3221",
            scope=f"{names}: the module without its carrier board" if module else names,
            period=Seconds(0.05),
            evidence=Evidence.MEASURED,
            is_whole=module is not None,
            note="" if module else "rails of an unknown board: some may be missing, or overlap",
            source=self._source,
        )

    def read(self) -> Sequence[PowerSample]:
        """The power of all its rails now.

        Raises:
            MeterUnavailable: a rail shows no number.
        """
        if not self._files:
            self.sensor()
        before = self._clock()
        found = self._folder.read(*(file for pair in self._files.values() for file in pair))
        watts = sum(self._watts(rail, found) for rail in self._files)
        return [PowerSample((before + self._clock()) / 2, Watts(watts))]

    def _rails(self) -> dict[str, tuple[str, str]]:
        names = self._folder.read("hwmon*/name")
        chips = [path.removesuffix("/name") for path, name in names.items() if name == "ina3221"]
        if not chips:
            raise MeterUnavailable(f"ina3221: no chip of that name in {self._folder.path}")
        rails = {}
        for chip in chips:
            # Channels 4 to 7 are shunt voltages and sums of the first three.
            for path, label in self._folder.read(f"{chip}/in[123]_label").items():
                channel = path.removesuffix("_label")
                amperes = channel.replace("/in", "/curr")
                if label not in UNCONNECTED:
                    rails[label] = (f"{channel}_input", f"{amperes}_input")
        if not rails:
            raise MeterUnavailable(f"ina3221: no rail is labeled in {self._folder.path}")
        return rails

    def _watts(self, rail: str, found: dict[str, str]) -> float:
        # hwmon counts in millivolts and milliamperes.
        try:
            millivolts, milliamperes = (float(found[file]) for file in self._files[rail])
        except (KeyError, ValueError):
            raise MeterUnavailable(f"ina3221: rail {rail} shows no volts and amperes") from None
        return millivolts * milliamperes / 1e6
