"""Estimates a Raspberry Pi 5's power from the rails of its power controller, by a fit."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from edgebuild.meters._source import Source
from edgebuild.vocabulary.contracts import Completed
from edgebuild.vocabulary.errors import DeviceError, MeterUnavailable
from edgebuild.vocabulary.measurement import Evidence
from edgebuild.vocabulary.power import PowerSample, Sensor
from edgebuild.vocabulary.units import Seconds

COMMAND = ("vcgencmd", "pmic_read_adc")
DEADLINE = Seconds(30.0)
# The controller does not see all rails. github.com/jfikar/RPi5-power fitted one board's input, read
# from a USB meter, to the sum of those it sees; its later fit, 1.1327 and 0.6444, tells how sure.
SLOPE, OFFSET = 1.1451, 0.5879

# Firmware writes `VDD_CORE_A current(7)=0.75012000A`, or `VDD_CORE_A=0.7501A`.
_READING = re.compile(r"\s*(\w+?)_[AV](?:\s+\w+\(\d+\))?=(-?\d+(?:\.\d*)?)([AV])\s*")


class Pmic(Source):
    """`vcgencmd pmic_read_adc`, here, on a device, or as a file that holds what it printed."""

    def sensor(self) -> Sensor:
        """What the fit stands for.

        Raises:
            MeterUnavailable: there is no such command, or it prints something else.
        """
        self.read()
        return Sensor(
            name="pmic",
            scope="the whole board without its USB devices",
            period=Seconds(0.2),
            evidence=Evidence.CALIBRATED_MODEL,
            is_whole=True,
            note=f"a third party's fit to one board, {SLOPE} × sum of rails + {OFFSET} W",
            source=self.source,
        )

    def read(self) -> Sequence[PowerSample]:
        """The board's power now, by the fit.

        Raises:
            MeterUnavailable: the command fails, or a rail lacks its volts or amperes.
        """
        return self.sample(lambda: SLOPE * sum_of_rails(self._text()) + OFFSET)

    def _text(self) -> str:
        try:
            if self.source:
                return Path(self.source).read_text()
            done = self.device.glance(COMMAND) if self.device else _run_here()
        except (OSError, UnicodeDecodeError, subprocess.TimeoutExpired, DeviceError) as error:
            raise MeterUnavailable(f"pmic: {self.source or ' '.join(COMMAND)}: {error}") from None
        if done.returncode != 0:
            raise MeterUnavailable(f"pmic: {' '.join(COMMAND)}: {done.reason}")
        return done.stdout


def _run_here() -> Completed:
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=DEADLINE, check=False)
    return Completed(done.returncode, done.stdout, done.stderr)


def sum_of_rails(text: str) -> float:
    """Watts of all rails that have amperes; the board's input and battery have only volts.

    Raises:
        MeterUnavailable: no rail at all, or one with amperes and no volts.
    """
    found: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    for line in text.splitlines():
        match = _READING.fullmatch(line)
        if match:
            rail, number, unit = match.groups()
            found[unit][rail] = float(number)
    amperes, volts = found["A"], found["V"]
    if not amperes:
        raise MeterUnavailable("pmic: no rail in what `vcgencmd pmic_read_adc` printed")
    without = sorted(set(amperes) - set(volts))
    if without:
        raise MeterUnavailable(f"pmic: no volts of {', '.join(without)}: the sum would be too low")
    return sum(amperes[rail] * volts[rail] for rail in amperes)
