"""An external meter's file is read while it grows, in its own units and by its own clock."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgebuild.meters.csv import Csv
from edgebuild.vocabulary.errors import MeterUnavailable

RECORDINGS = Path(__file__).parent / "recordings"
NOON = "2026-11-24T12:00:00Z"
# Unix time of the first row, and the watts of all.
TOLD = {
    "power-by-date.csv": (1_795_550_400.0, [3.012, 3.022, 5.030]),
    "power-in-milliwatts.csv": (1_795_550_400.0, [3.012, 3.022, 5.030]),
    f"volts-and-amperes-since-start.csv@{NOON}": (1_795_521_600.0, [0.95, 0.95, 1.895]),
}
REASONS = {
    "volts-and-amperes-since-start.csv": "count from a start that it does not say: give .*@2026",
    "current-alone.csv": r"no column for power \(nor for both voltage and current\)",
    "power-without-unit.csv": "no column for power",
    "row-of-text.csv": "line 3: '1795550401,overload' is no measurement",
    "time-goes-back.csv": "line 3: time goes back",
    "empty.csv": "holds no header: is its logger running",
    "missing.csv": "cannot be read: No such file",
    "power-by-date.csv@noon": "noon is no start",
}


@pytest.mark.parametrize("source", TOLD)
def test_times_and_watts_are_in_si_units(source: str) -> None:
    meter = Csv(str(RECORDINGS / source))
    started, watts = TOLD[source]
    samples = meter.read()
    assert samples[0].at == pytest.approx(started)
    assert [sample.watts for sample in samples] == pytest.approx(watts)
    assert source.partition("@")[0] in meter.sensor().scope


def test_what_the_meter_multiplied_itself_is_preferred() -> None:
    assert Csv(str(RECORDINGS / "power-by-date.csv")).sensor().scope.startswith("Power (W) in")


@pytest.mark.parametrize("source", REASONS)
def test_a_file_that_is_no_record_of_power_says_why(source: str) -> None:
    with pytest.raises(MeterUnavailable, match=REASONS[source]):
        Csv(str(RECORDINGS / source)).read()


def test_a_meter_without_a_file_asks_for_one() -> None:
    with pytest.raises(MeterUnavailable, match="csv: name its file, as csv=power.csv"):
        Csv().sensor()


def test_rows_are_read_as_they_come_and_never_by_halves(tmp_path: Path) -> None:
    log = tmp_path / "power.csv"
    whole = (RECORDINGS / "power-in-milliwatts.csv").read_text()
    expected = Csv(str(RECORDINGS / "power-in-milliwatts.csv")).read()
    meter, found = None, []
    for end in range(len("timestamp_ms;power_mw\n"), len(whole) + 1):
        log.write_text(whole[:end])
        meter = meter or Csv(str(log))
        found += meter.read()
    assert found == expected


def test_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    log = tmp_path / "power.csv"
    shutil.copy(RECORDINGS / "power-by-date.csv", log)
    log.write_bytes(b"\xef\xbb\xbf" + log.read_bytes().replace(b"\n", b"\r\n"))
    assert len(Csv(str(log)).read()) == 3
