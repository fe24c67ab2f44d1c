"""Reads the INA3221 chips of a Jetson: volts times amperes of each rail, from hwmon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from edgebuild.meters._source import FolderSource
from edgebuild.vocabulary.errors import MeterUnavailable
from edgebuild.vocabulary.measurement import Evidence
from edgebuild.vocabulary.power import PowerSample, Sensor
from edgebuild.vocabulary.units import Seconds

# Which rails add up to the module. Orin Nano, Orin NX and Xavier NX measure its input; AGX Orin
# has three inputs, and its memory's rail (VDDQ_VDD2_1V8AO) hangs behind the third.
MODULES = (
    frozenset({"VDD_IN"}),
    frozenset({"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"}),
)
# What a channel is called that is connected to nothing.
UNCONNECTED = {"NC", ""}


@dataclass
class Ina3221(FolderSource):
    """The rails that make up the module; all labeled ones where it is not known which do."""

    root: ClassVar[str] = "/sys/class/hwmon"
    # From a rail's name to its files for volts and amperes.
    _files: dict[str, tuple[str, str]] = field(default_factory=dict, init=False)

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
            source=self.source,
        )

    def read(self) -> Sequence[PowerSample]:
        """The power of all its rails now.

        Raises:
            MeterUnavailable: a rail shows no number.
        """
        if not self._files:
            self.sensor()
        return self.sample(self._watts)

    def _watts(self) -> float:
        found = self.folder.read(*(file for pair in self._files.values() for file in pair))
        return sum(self._watts_of(rail, found) for rail in self._files)

    def _rails(self) -> dict[str, tuple[str, str]]:
        names = self.folder.read("hwmon*/name")
        chips = [path.removesuffix("/name") for path, name in names.items() if name == "ina3221"]
        if not chips:
            raise MeterUnavailable(f"ina3221: no chip of that name in {self.folder.path}")
        rails = {}
        for chip in chips:
            # Channels 4 to 7 are shunt voltages and sums of the first three.
            for path, label in self.folder.read(f"{chip}/in[123]_label").items():
                channel = path.removesuffix("_label")
                amperes = channel.replace("/in", "/curr")
                if label not in UNCONNECTED:
                    rails[label] = (f"{channel}_input", f"{amperes}_input")
        if not rails:
            raise MeterUnavailable(f"ina3221: no rail is labeled in {self.folder.path}")
        return rails

    def _watts_of(self, rail: str, found: dict[str, str]) -> float:
        # hwmon counts in millivolts and milliamperes.
        try:
            millivolts, milliamperes = (float(found[file]) for file in self._files[rail])
        except (KeyError, ValueError):
            raise MeterUnavailable(f"ina3221: rail {rail} shows no volts and amperes") from None
        return millivolts * milliamperes / 1e6
