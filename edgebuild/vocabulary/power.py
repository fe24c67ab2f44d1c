"""Power as meters show it: timestamped watts, what a sensor sees, and energy per inference."""

from __future__ import annotations

from dataclasses import dataclass

from edgebuild.vocabulary.measurement import Evidence, Figure
from edgebuild.vocabulary.units import Seconds, Watts


@dataclass(frozen=True)
class PowerSample:
    """The mean power from the sample before it until `at`, in Unix time of this machine."""

    at: float
    watts: Watts


@dataclass(frozen=True)
class Sensor:
    """What a meter sees, how often it is read, and what its watts are worth.

    `evidence` is measured, or calibrated-model where a fit turns readings into watts.
    `is_whole` is false where a part of the board draws its power past the sensor: its watts then
    bound the board's from below, and can only breach a limit. `source` is where it is read, if
    that is not the sensor's own place: it may be a copy.
    """

    name: str
    scope: str
    period: Seconds
    evidence: Evidence
    is_whole: bool
    note: str = ""
    source: str = ""


@dataclass(frozen=True)
class Stretch:
    """A stretch of Unix time."""

    began: float
    ended: float

    @property
    def length(self) -> Seconds:
        return Seconds(self.ended - self.began)


@dataclass(frozen=True)
class Draw:
    """What a run drew: watts while idle, while running and above idle, joules per inference.

    The intervals are of the samples, at 99 %; how true the sensor is, nobody here knows.
    """

    sensor: Sensor
    idle: Figure
    active: Figure
    above_idle: Figure
    energy: Figure
    inference: Seconds
    idle_during: Stretch
    active_during: Stretch
