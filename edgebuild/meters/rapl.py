"""Reads the energy counters of a PC's processor (RAPL) from powercap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from edgebuild.meters._source import FolderSource
from edgebuild.vocabulary.errors import MeterUnavailable
from edgebuild.vocabulary.measurement import Evidence
from edgebuild.vocabulary.power import PowerSample, Sensor
from edgebuild.vocabulary.units import Joules, Seconds, Watts


@dataclass
class Rapl(FolderSource):
    """The packages and their memory; AMD's counters have the same names."""

    root: ClassVar[str] = "/sys/class/powercap"
    # From a zone's folder to where its counter starts again, in microjoules.
    _ranges: dict[str, int] = field(default_factory=dict, init=False)
    _before: tuple[float, Mapping[str, int]] | None = field(default=None, init=False)

    def sensor(self) -> Sensor:
        """The zones that it adds up.

        Raises:
            MeterUnavailable: there are none, or only root may read them.
        """
        names = self._zones()
        self._ranges = self._numbers("max_energy_range_uj", names)
        self._numbers("energy_uj", names)
        return Sensor(
            name="rapl",
            scope=" + ".join(names.values()),
            period=Seconds(0.1),
            evidence=Evidence.MEASURED,
            is_whole=False,
            note="the processor alone: the rest of the board is not in it",
            source=self.source,
        )

    def read(self) -> Sequence[PowerSample]:
        """The mean power since it was read before; nothing at first.

        Raises:
            MeterUnavailable: a counter that can no longer be read.
        """
        if not self._ranges:
            self.sensor()
        now, counters = self.clock(), self._numbers("energy_uj", self._ranges)
        before, self._before = self._before, (now, counters)
        if before is None or now <= before[0]:
            return []
        joules = sum(used(before[1][zone], counters[zone], self._ranges[zone]) for zone in counters)
        return [PowerSample(now, Watts(joules / (now - before[0])))]

    def _zones(self) -> dict[str, str]:
        """Names by folder. Cores and graphics are inside their package; memory is not.

        `intel-rapl-mmio:0` is the same package once more, by another door.
        """
        found = self.folder.read("intel-rapl:*/name")
        zones = {path.removesuffix("/name"): name for path, name in sorted(found.items())}
        counted = {zone: name for zone, name in zones.items() if name.startswith(("pack", "dram"))}
        if not any(name.startswith("package") for name in counted.values()):
            raise MeterUnavailable(
                f"rapl: {self.folder.path} holds no package: no RAPL, or hidden by a hypervisor"
            )
        return counted

    def _numbers(self, file: str, zones: Mapping[str, object]) -> dict[str, int]:
        found = self.folder.read(*(f"{zone}/{file}" for zone in zones))
        try:
            return {zone: int(found[f"{zone}/{file}"]) for zone in zones}
        except (KeyError, ValueError):
            raise MeterUnavailable(
                f"rapl: {self.folder.path}/*/{file} cannot be read: since Linux 5.10 only root may"
            ) from None


def used(before: int, now: int, limit: int) -> Joules:
    """The energy between two readings of a counter in microjoules that wraps around at `limit`.

    It must be read more often than it wraps: at 100 W that is every 40 minutes or so.
    """
    return Joules((now - before) % limit / 1e6 if now < before else (now - before) / 1e6)
