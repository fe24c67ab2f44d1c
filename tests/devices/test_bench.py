"""A bundle is measured on several devices side by side; a dead one does not stop the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import small_build
from conftest import Workshop
from devices.boards import adb_board, ssh_board
from meters.conftest import lay_out

from edgebuild import catalog
from edgebuild.bundles import metered
from edgebuild.bundles.bench import Benched, Effort, bench_all
from edgebuild.bundles.bench import bench as run_bench
from edgebuild.bundles.manifest import Bundle
from edgebuild.vocabulary.contracts import Fit
from edgebuild.vocabulary.units import Seconds

pytestmark = [pytest.mark.ssh, pytest.mark.adb]

SHORT = Effort(seconds=0.1, count=50)


@pytest.fixture(scope="module")
def bundle(workshop: Workshop) -> Bundle:
    return small_build.bundle(workshop.folder)


@pytest.fixture(scope="module")
def found(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Benched]]:
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        folder = tmp_path_factory.mktemp("lab")
        pi = stack.enter_context(ssh_board(folder / "pi", patch, tools="busybox"))
        phone = stack.enter_context(adb_board(folder / "phone", patch, tools="toybox"))
        urls = {"pi": pi.url, "phone": phone.url, "dead": f"{pi.url}:23", "twin": "twin:2GB"}
        devices = {name: catalog.device(url) for name, url in urls.items()}
        yield {one.device: one for one in bench_all(bundle, devices, SHORT)}


def test_a_meter_on_the_device_is_read_while_that_is_busy(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metered, "SHORTEST_IDLE", Seconds(2.0))
    monkeypatch.setattr(metered, "SETTLING", Seconds(0.0))
    board = ssh_board(tmp_path / "jetson", monkeypatch, tools="busybox")
    with board as jetson, jetson.device() as device:
        lay_out("jetson-orin-nano", jetson.disk / "hwmon")
        meter = f"ina3221={jetson.place('hwmon')}"
        effort = Effort(seconds=3.0, count=50, meter=meter)
        found = run_bench(bundle, "jetson", device, effort)
    assert found.measurement is not None
    # A recording shows the same all the time, and that is found out: so it was read meanwhile.
    assert found.power_error.startswith("ina3221: 4.402 W throughout, idle and running")


@pytest.mark.parametrize("device", ["pi", "phone", "twin"])
def test_each_device_has_measured(found: dict[str, Benched], device: str) -> None:
    assert found[device].error == ""
    measurement = found[device].measurement
    assert measurement is not None
    assert len(measurement.latencies) >= 50


def test_each_measurement_says_where_it_was_made(found: dict[str, Benched]) -> None:
    assert found["pi"].where.startswith("ssh://root@127.0.0.1, ")
    assert found["phone"].where.startswith("adb://127.0.0.1:5555, ")
    assert found["twin"].where.startswith("this machine with the memory of 2GB")


def test_the_dead_one_has_an_error_instead(found: dict[str, Benched]) -> None:
    assert found["dead"].measurement is None
    assert "refuses the connection" in found["dead"].error


def test_only_the_twin_has_a_memory_limit(found: dict[str, Benched]) -> None:
    trials = {name: one.memory_trial for name, one in found.items()}
    assert trials.pop("twin").fit in (Fit.FITS, Fit.NOT_ENFORCED)  # type: ignore[union-attr]
    assert set(trials.values()) == {None}
