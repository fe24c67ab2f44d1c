"""What holds of every meter that is found."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from edgebuild import catalog
from edgebuild.meters._folder import Folder
from edgebuild.vocabulary.errors import InputError, MeterUnavailable
from edgebuild.vocabulary.measurement import Evidence
from edgebuild.vocabulary.power import PowerSample

Recorded = Callable[[str], Path]
RECORDINGS = Path(__file__).parent / "recordings"
METERS = catalog.names("meters")
# Something that each can read: a tree by its name, or a file.
READABLE = {
    "battery": "phone-microamperes-negative",
    "csv": "power-by-date.csv",
    "ina3221": "jetson-orin-nano",
    "pmic": "raspberry-pi-5-plain.txt",
    "rapl": "laptop",
}
TREES = ["battery", "ina3221", "rapl"]


def source(name: str, recorded: Recorded) -> Path:
    readable = READABLE[name]
    return RECORDINGS / readable if "." in readable else recorded(readable)


@pytest.mark.parametrize("name", METERS)
def test_a_sensor_says_what_it_sees_how_often_and_on_what_grounds(
    name: str, recorded: Recorded
) -> None:
    readable = source(name, recorded).name
    meter = catalog.meter(f"{name}={source(name, recorded)}")
    sensor = meter.sensor()
    assert sensor.name == name
    assert sensor.scope
    assert 0 < sensor.period <= 1
    assert sensor.evidence in (Evidence.MEASURED, Evidence.CALIBRATED_MODEL)
    assert sensor.is_whole or sensor.note
    assert meter.sensor() == sensor
    # A copy is told from the sensor itself.
    assert readable in sensor.source + sensor.scope


@pytest.mark.parametrize("name", METERS)
def test_readings_are_watts_at_a_time_that_goes_on(name: str, recorded: Recorded) -> None:
    meter = catalog.meter(f"{name}={source(name, recorded)}")
    found: list[PowerSample] = [sample for _ in range(4) for sample in meter.read()]
    assert len(found) >= 3
    assert all(math.isfinite(sample.watts) and sample.watts >= 0 for sample in found)
    assert found == sorted(found, key=lambda sample: sample.at)


@pytest.mark.parametrize("name", METERS)
@pytest.mark.parametrize("call", ["sensor", "read"])
def test_what_is_not_there_is_unavailable_in_one_line(name: str, call: str, tmp_path: Path) -> None:
    meter = catalog.meter(f"{name}={tmp_path / 'missing'}")
    with pytest.raises(MeterUnavailable, match=rf"{name}: [^\n]+$") as raised:
        getattr(meter, call)()
    assert raised.value.exit_code == 4


@pytest.mark.parametrize("name", TREES)
def test_a_device_reads_the_same_as_this_machine(name: str, recorded: Recorded) -> None:
    root = source(name, recorded)
    with catalog.device("local") as device:
        there = catalog.meter(f"{name}={root}", device)
        here = catalog.meter(f"{name}={root}")
        assert there.sensor() == here.sensor()
        assert [s.watts for s in there.read()] == [s.watts for s in here.read()]


def test_a_folder_leaves_out_what_nobody_may_read(tmp_path: Path) -> None:
    # A folder where a file belongs refuses even root.
    (tmp_path / "zone:0" / "energy_uj").mkdir(parents=True)
    (tmp_path / "zone:0" / "name").write_text("package 0\n")
    with catalog.device("local") as device:
        for folder in (Folder(str(tmp_path)), Folder(str(tmp_path), device)):
            assert folder.read("zone:*/*", "none/*") == {"zone:0/name": "package 0"}


def test_a_meter_that_is_not_known_has_a_nearest_one() -> None:
    with pytest.raises(InputError, match="no meter is called 'ina3222'. Did you mean 'ina3221'"):
        catalog.meter("ina3222")
