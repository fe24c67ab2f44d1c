"""A meter is watched while the machine idles and runs; what it cannot say is said, not made up."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from edgebuild import catalog, cli
from edgebuild.bundles import metered as module
from edgebuild.bundles.manifest import FILE, Bundle, dump_manifest
from edgebuild.bundles.metered import clock_lead, metered
from edgebuild.inputs.target_file import load_target
from edgebuild.vocabulary.contracts import Completed
from edgebuild.vocabulary.errors import DeviceError, MeterUnavailable
from edgebuild.vocabulary.measurement import Evidence, Measurement
from edgebuild.vocabulary.power import PowerSample, Sensor
from edgebuild.vocabulary.target import Budget

RECORDINGS = Path(__file__).parents[1] / "meters" / "recordings"
IDLE, BUSY = 2.0, 5.0


class Plug:
    """A meter that shows more while something runs, until it breaks."""

    def __init__(self, broken_after: int = 10**9) -> None:
        self.is_busy = threading.Event()
        self.reads = 0
        self._broken_after = broken_after

    def sensor(self) -> Sensor:
        return Sensor("plug", "the wall", 0.01, Evidence.MEASURED, is_whole=True)

    def read(self) -> Sequence[PowerSample]:
        self.reads += 1
        if self.reads > self._broken_after:
            raise MeterUnavailable("plug: somebody pulled it")
        return [PowerSample(time.time(), BUSY if self.is_busy.is_set() else IDLE)]


class Elsewhere:
    """A device whose clock is ahead."""

    name = "elsewhere"

    def __init__(self, ahead: float) -> None:
        self._ahead = ahead

    def glance(self, command: list[str]) -> Completed:
        assert command[:2] == ["sh", "-c"]
        return Completed(0, f"{time.time() + self._ahead:.9f}\n", "")


def run(plug: Plug, ahead: float = 0.0) -> Measurement:
    """Half a second in ten inferences, after a load that does not count."""
    time.sleep(0.1)
    plug.is_busy.set()
    began = time.time()
    time.sleep(0.5)
    ended = time.time()
    plug.is_busy.clear()
    return measurement(began + ahead, ended + ahead)


def measurement(began: float | None, ended: float | None) -> Measurement:
    return Measurement(
        latencies=(0.05,) * 10,
        load=0.1,
        peak_memory=0,
        peak_anonymous=0,
        baseline_memory=0,
        cpu_share=1.0,
        threads=1,
        runtime="a runtime",
        machine="a machine",
        taken_at="2026-11-24T20:00:00+00:00",
        began_at=began,
        ended_at=ended,
    )


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLING", 0.05)
    monkeypatch.setattr(module, "SHORTEST_IDLE", 0.3)


@pytest.mark.parametrize("ahead", [0.0, 3600.0, -86400.0])
def test_idle_and_active_are_told_apart_whatever_the_devices_clock_says(ahead: float) -> None:
    plug = Plug()
    found = metered(plug, Elsewhere(ahead), 0.3, lambda: run(plug, ahead)).draw
    assert found is not None
    assert found.idle.value == pytest.approx(IDLE, rel=0.05)
    assert found.active.value == pytest.approx(BUSY, rel=0.05)
    assert found.energy.value == pytest.approx((BUSY - IDLE) * 0.05, rel=0.1)
    assert found.energy.where.startswith("elsewhere by plug, every 0.01")


def test_a_meter_that_cannot_be_read_ends_it_before_anything_runs(tmp_path: Path) -> None:
    meter = catalog.meter(f"rapl={tmp_path}")
    with pytest.raises(MeterUnavailable, match="rapl: .* holds no package"):
        metered(meter, Elsewhere(0.0), 0.3, lambda: pytest.fail("it ran"))


def test_a_meter_that_breaks_leaves_the_measurement_and_its_reason() -> None:
    plug = Plug(broken_after=3)
    found = metered(plug, Elsewhere(0.0), 0.3, lambda: run(plug))
    assert len(found.measurement.latencies) == 10
    assert (found.draw, found.unavailable) == (None, "plug: somebody pulled it")


def test_a_run_that_does_not_say_when_has_no_power() -> None:
    found = metered(Plug(), Elsewhere(0.0), 0.3, lambda: measurement(None, None))
    assert found.draw is None
    assert "does not say when" in found.unavailable


def test_a_run_that_fails_fails_and_stops_the_meter() -> None:
    plug = Plug()

    def fail() -> Measurement:
        raise DeviceError("the runtime is missing")

    with pytest.raises(DeviceError, match="the runtime is missing"):
        metered(plug, Elsewhere(0.0), 0.3, fail)
    reads = plug.reads
    time.sleep(0.1)
    assert plug.reads == reads


def test_this_machines_clock_is_its_own() -> None:
    with catalog.device("local") as device:
        assert abs(clock_lead(device)) < 0.5


def test_a_device_that_tells_no_time_says_so() -> None:
    class Timeless(Elsewhere):
        def glance(self, command: list[str]) -> Completed:
            return Completed(0, "1795550400.%N\n", "")

    with pytest.raises(MeterUnavailable, match="elsewhere does not tell the time"):
        clock_lead(Timeless(0.0))


# ---- from the command line


def wants_power(bundle: Bundle, target: str = "host") -> Path:
    """The bundle, as if it had been built for a target with a power budget."""
    budget = Budget.parse(power="3 W", rate="2 /s")
    manifest = replace(bundle.manifest, target=load_target(target), budget=budget)
    (bundle.path / FILE).write_bytes(dump_manifest(manifest))
    return bundle.path


def supply(log: Path, done: threading.Event) -> None:
    """Logs about two watts ten times a second, as an external meter does."""
    with log.open("w") as file:
        file.write("time_s,power_w\n")
        for watts in itertools.cycle((1.99, 2.0, 2.01)):
            if done.is_set():
                return
            file.write(f"{time.time():.3f},{watts}\n")
            file.flush()
            time.sleep(0.1)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    path, done = tmp_path / "power.csv", threading.Event()
    writer = threading.Thread(target=supply, args=(path, done))
    writer.start()
    while not path.exists() or not path.read_text():
        time.sleep(0.01)
    yield path
    done.set()
    writer.join()


def bench(dist: Path, meter: str, as_json: bool = False) -> None:
    cli.bench(dist, seconds=2.0, count=10, meter=meter, as_json=as_json)


def test_a_measured_power_line_is_met(
    bundle: Bundle, log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bench(wants_power(bundle), f"csv={log}")
    said = " ".join(capfd.readouterr().err.split())
    assert "power above idle at 2 /s" in said
    assert "of 3 W, met" in said
    assert "power_w in power.csv" in said


def test_a_calibrated_models_power_line_is_predicted(
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    command = tmp_path / "vcgencmd"
    recording = RECORDINGS / "raspberry-pi-5-plain.txt"
    # Nanoseconds stand for what varies.
    command.write_text(
        f'#!/bin/sh\nsed "s/^VDD_CORE_A=.*/VDD_CORE_A=0.75$(date +%N)A/" {recording}\n'
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    bench(wants_power(bundle), "pmic")
    said = " ".join(capfd.readouterr().err.split())
    assert "of 3 W, predicted" in said
    assert "calibrated-model" in said


def test_what_is_measured_elsewhere_says_nothing_of_the_target(
    bundle: Bundle, log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bench(wants_power(bundle, "robot-raspberry-pi-5"), f"csv={log}")
    said = " ".join(capfd.readouterr().err.split())
    assert "the power budget is for robot-raspberry-pi-5: not measured there" in said


def test_json_holds_the_draw_and_as_many_inferences_as_the_time_took(
    bundle: Bundle, log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bench(wants_power(bundle), f"csv={log}", as_json=True)
    [found] = json.loads(capfd.readouterr().out)["devices"]
    measured = found["measurement"]
    assert measured["ended_at"] - measured["began_at"] == pytest.approx(2.0, abs=0.5)
    assert measured["inferences"] >= len(measured["latencies"])
    assert found["power"]["active"]["value"] == pytest.approx(2.0, rel=0.02)
    assert found["power"]["energy"]["evidence"] == "measured"


def test_a_meter_that_says_too_little_leaves_the_rest_and_one_line(
    bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "power.csv"
    log.write_text("time_s,power_w\n")
    with pytest.raises(SystemExit, match="4"):
        bench(wants_power(bundle), f"csv={log}", as_json=True)
    said = capfd.readouterr()
    assert "power is unavailable: csv, idle: 0 samples in" in " ".join(said.err.split())
    [found] = json.loads(said.out)["devices"]
    assert found["power_error"].startswith("csv, idle: 0 samples")
    assert len(found["measurement"]["latencies"]) >= 10
