"""Reads the file that an external meter writes while the run goes on."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from edgebuild.vocabulary.contracts import Device
from edgebuild.vocabulary.errors import MeterUnavailable
from edgebuild.vocabulary.measurement import Evidence
from edgebuild.vocabulary.power import PowerSample, Sensor
from edgebuild.vocabulary.units import Seconds, Watts

# What a header may call its quantities and units: `Timestamp(ms)`, `power_w`, `Main Power (mW)`.
QUANTITIES = {
    "time": ("time", "timestamp", "datetime"),
    "power": ("power", "watt", "watts"),
    "voltage": ("voltage", "volt", "volts"),
    "current": ("current", "ampere", "amperes", "amps"),
}
UNITS = {
    "time": {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9},
    "power": {"w": 1.0, "watt": 1.0, "watts": 1.0, "mw": 1e-3, "uw": 1e-6, "µw": 1e-6},
    "voltage": {"v": 1.0, "volt": 1.0, "volts": 1.0, "mv": 1e-3},
    "current": {
        **{"a": 1.0, "ampere": 1.0, "amperes": 1.0, "amps": 1.0},
        **{"ma": 1e-3, "ua": 1e-6, "µa": 1e-6},
    },
}
# Seconds below this, in 2001, count from when the meter was started.
FIRST_UNIX_TIME = 1e9


@dataclass(frozen=True)
class Column:
    """One quantity: where it stands in a row, and what turns it into its SI unit."""

    title: str
    index: int
    scale: float


class Csv:
    """`FILE`, or `FILE@START` where its times count from a start (ISO 8601 or Unix seconds)."""

    def __init__(self, source: str = "", device: Device | None = None) -> None:
        # The meter's own program writes here, wherever the run is; so no device is asked.
        path, _, start = source.partition("@")
        self._path = Path(path)
        self._start = start
        self._columns: dict[str, Column] = {}
        self._delimiter = ","
        self._position = 0
        # Rows that came together with the header.
        self._waiting: list[str] = []
        self._line = 0
        self._last = float("-inf")

    def sensor(self) -> Sensor:
        """The columns that it takes.

        Raises:
            MeterUnavailable: no file, or no header that names a time and a power.
        """
        if not self._columns:
            self._read_header()
        factors = [column.title for name, column in self._columns.items() if name != "time"]
        return Sensor(
            name="csv",
            scope=f"{' × '.join(factors)} in {self._path.name}, taken as the whole board's supply",
            period=Seconds(1.0),
            evidence=Evidence.MEASURED,
            is_whole=True,
            note="an external meter, aligned by the clocks of both",
        )

    def read(self) -> Sequence[PowerSample]:
        """Every row that has come since it was read before.

        Raises:
            MeterUnavailable: a row that is no measurement, or older than the one above it.
        """
        if not self._columns:
            self._read_header()
        return [self._sample(line) for line in self._new_lines() if line.strip()]

    def _read_header(self) -> None:
        self._refuse_bad_source()
        header, *rows = self._new_lines() or [""]
        if not header:
            raise MeterUnavailable(f"csv: {self._path} holds no header: is its logger running?")
        self._waiting, self._line = rows, 1
        self._delimiter = max(",;\t", key=header.count)
        columns = _columns(next(csv.reader([header], delimiter=self._delimiter)))
        missing = _missing(columns)
        if missing:
            raise MeterUnavailable(f"csv: {self._path} has no column for {missing} with its unit")
        self._columns = columns

    def _refuse_bad_source(self) -> None:
        if not self._path.name:
            raise MeterUnavailable("csv: name its file, as csv=power.csv")
        try:
            _moment(self._start or "0", 1.0)
        except ValueError:
            raise MeterUnavailable(
                f"csv: {self._start} is no start: give a date as 2026-01-31T12:00:00Z"
            ) from None

    def _new_lines(self) -> list[str]:
        """Whole lines only: the logger may be in the middle of one."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                text = file.read()
        except OSError as error:
            raise MeterUnavailable(f"csv: {self._path} cannot be read: {error.strerror}") from None
        whole = text[: text.rfind(b"\n") + 1]
        self._position += len(whole)
        lines, self._waiting = self._waiting + whole.decode(errors="replace").splitlines(), []
        return lines

    def _sample(self, line: str) -> PowerSample:
        self._line += 1
        row = next(csv.reader([line], delimiter=self._delimiter))
        try:
            found = {name: row[column.index].strip() for name, column in self._columns.items()}
            at = _moment(found.pop("time"), self._columns["time"].scale)
            watts = 1.0
            for name, text in found.items():
                watts *= float(text) * self._columns[name].scale
            if not math.isfinite(at * watts):
                raise ValueError
        except (IndexError, ValueError):
            raise MeterUnavailable(
                f"csv: {self._path}, line {self._line}: {line.strip()!r} is no measurement"
            ) from None
        if at < FIRST_UNIX_TIME:
            at += self._started()
        if at < self._last:
            raise MeterUnavailable(f"csv: {self._path}, line {self._line}: time goes back")
        self._last = at
        return PowerSample(at, Watts(watts))

    def _started(self) -> float:
        if not self._start:
            raise MeterUnavailable(
                f"csv: the times in {self._path} count from a start that it does not say: "
                f"give {self._path}@2026-01-31T12:00:00Z"
            )
        return _moment(self._start, 1.0)


def _columns(titles: list[str]) -> dict[str, Column]:
    """The first column of each quantity that names a unit; times of day need none."""
    found: dict[str, Column] = {}
    for index, title in enumerate(titles):
        words = re.findall(r"[a-zµ]+", title.lower().replace("μ", "µ"))
        for quantity, names in QUANTITIES.items():
            if quantity in found or not set(words) & set(names):
                continue
            scale = UNITS[quantity].get(words[-1], 1.0 if quantity == "time" else None)
            if scale is not None:
                found[quantity] = Column(title.strip(), index, scale)
    # A power that the meter multiplied itself, sample by sample, is the better one.
    factors = ("power",) if "power" in found else ("voltage", "current")
    return {name: found[name] for name in ("time", *factors) if name in found}


def _missing(columns: dict[str, Column]) -> str:
    if "time" not in columns:
        return "time"
    if "power" not in columns and not {"voltage", "current"} <= set(columns):
        return "power (nor for both voltage and current)"
    return ""


def _moment(text: str, scale: float) -> float:
    """Seconds of a number, or Unix time of a date; a date without a zone is of this machine's."""
    try:
        return float(text) * scale
    except ValueError:
        return datetime.fromisoformat(text).timestamp()
