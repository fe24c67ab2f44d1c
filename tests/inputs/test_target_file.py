"""Shipped profiles load; broken ones are refused with the line, the key and the nearest key."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgebuild.inputs.target_file import load_target, target_names
from edgebuild.vocabulary.errors import InvalidTarget
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.target import Activations, DeviceKind, PowerFacts
from edgebuild.vocabulary.units import Watts

ROOT = Path(__file__).parents[2]
BROKEN = Path(__file__).parents[1] / "targets"

SHIPPED = {
    "phone-budget",
    "phone-12gb",
    "phone-24gb",
    "car-sa8295p",
    "car-orin-nx",
    "car-tda4vm",
    "robot-raspberry-pi-5",
    "robot-raspberry-pi-4",
    "robot-jetson-orin-nano",
    "robot-3w",
    "host",
}

# What is wrong with each file, as the message says it: line, key and reason.
DEFECTS = {
    "accuracy-drop-above-all": "33: budget.accuracy_drop: is more than 100 %",
    "app-share-above-one": "6: memory.app_share: 1.5 is not a fraction above 0 and at most 1",
    "app-share-as-text": "6: memory.app_share: '50 %' is no fraction",
    "app-share-zero": "6: memory.app_share: 0 is not a fraction above 0",
    "budget-above-power": "31: budget.power: 4.5 W above idle is more than .*: 4 W",
    "budget-above-ram": "30: budget.memory: 1.5 GB is more than the 1 GB",
    "empty-runtime": r"16: runtime: no runtime: write a table \[runtime.onnxruntime\]",
    "empty-source": "39: sources.power: is empty",
    "empty-title": "1: title: is empty",
    "fact-without-source": '6: memory.app_share: no source: .* "unsourced"',
    "idle-above-active": "25: power.idle: 6 W is more than active, 5 W",
    "missing-key": "4: memory.ram: missing key",
    "missing-sources": "1: sources: missing key",
    "more-threads-than-cores": "18: runtime.litert.threads: 8 is more than the 4",
    "negative-memory": "5: memory.ram: '-2 GB' is negative",
    "mapped-share-below-app-share": "7: memory.mapped_share: 0.4 is less than memory.app_share",
    "no-cores": "11: compute.cores: 0 is not above zero",
    "no-kernels": "16: runtime.litert: no kernels: list precisions for one of convolution",
    "no-runtime": r"1: runtime: no runtime: write a table .* \[runtime.litert\]",
    "no-unit": "7: memory.bandwidth: '10' has no unit: write one of MB/s, GB/s, TB/s",
    "not-toml": "11: is not TOML: invalid value",
    "number-without-quotes": '5: memory.ram: 2 is no quantity: write a text .* "8 GB"',
    "power-without-rate": "31: budget.power: says nothing without budget.rate",
    "precision-instead-of-list": "21: runtime.litert.convolution: 'int8-static' is not a list",
    "source-without-fact": "40: .*\"memory.bandwith\": .* Did you mean 'memory.bandwidth'",
    "text-instead-of-count": "11: compute.cores: '4' is not a whole number",
    "too-large-memory": "5: memory.ram: '1e999 GB' is too large",
    "unclosed-text": "39: is not TOML: ",
    "unknown-activations": "19: runtime.litert.activations: 'sint8' .* Did you mean 'int8'",
    "unknown-budget-line": "29: budget.latency_p90: unknown key. Did you mean 'latency_p99'",
    "unknown-key": "7: memory.bandwith: unknown key. Did you mean 'bandwidth'",
    "unknown-kind": "2: kind: 'robots' is not one of .* Did you mean 'robot'",
    "unknown-layer-kind": "21: runtime.litert.convolutions: unknown .* Did you mean 'convolution'",
    "unknown-precision": "21: runtime.litert.convolution: 'int8-statc' .* mean 'int8-static'",
    "unknown-runtime": "16: runtime.lite-rt: 'lite-rt' is not one of .* mean 'litert'",
    "unknown-table": "9: computer: unknown key. Did you mean 'compute'",
    "unknown-unit": "7: memory.bandwidth: '10 GBps' has the unknown unit 'GBps'",
    "value-instead-of-table": "3: power: '5 W' is not a table",
    "zero-bandwidth": "7: memory.bandwidth: '0 GB/s' is not above zero",
}


@pytest.mark.parametrize(("defect", "message"), DEFECTS.items(), ids=DEFECTS)
def test_a_broken_profile_is_refused_in_one_line(defect: str, message: str) -> None:
    file = BROKEN / f"{defect}.toml"
    with pytest.raises(InvalidTarget, match=f"^{re.escape(str(file))}:{message}") as refusal:
        load_target(file)
    assert "\n" not in str(refusal.value)


def test_every_broken_profile_is_tested() -> None:
    assert {file.stem for file in BROKEN.glob("*.toml")} == {*DEFECTS, "valid"}


def test_a_profile_becomes_a_target() -> None:
    target = load_target(BROKEN / "valid.toml")
    assert target.name == "valid"
    assert target.kind is DeviceKind.ROBOT
    assert target.app_memory == 1_000_000_000
    assert target.compute.clock == 1.5e9
    assert target.power == PowerFacts(idle=Watts(1.0), active=Watts(5.0))
    assert target.budget.latency_p99 == 0.1
    assert target.budget.storage is None
    (runtime,) = target.runtimes
    assert runtime.activations is Activations.INT8
    assert runtime.kernels == {
        LayerKind.CONVOLUTION: (Precision.INT8_STATIC, Precision.FP32),
        LayerKind.LINEAR: (Precision.INT8_DYNAMIC, Precision.FP32),
    }


def test_a_path_may_be_a_text() -> None:
    file = BROKEN / "valid.toml"
    assert load_target(str(file)) == load_target(file)


def test_runtimes_keep_the_order_of_the_file() -> None:
    names = [runtime.name for runtime in load_target("robot-raspberry-pi-5").runtimes]
    assert names == ["litert", "onnxruntime"]


def test_an_unknown_target_is_refused_with_the_nearest_name() -> None:
    message = "unknown target 'raspberry-pi5'. Did you mean 'robot-raspberry-pi-5'?"
    with pytest.raises(InvalidTarget, match=re.escape(message)):
        load_target("raspberry-pi5")


def test_a_missing_file_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(InvalidTarget, match=r"mine\.toml: cannot be read: No such file"):
        load_target(tmp_path / "mine.toml")


def test_a_folder_is_no_profile(tmp_path: Path) -> None:
    with pytest.raises(InvalidTarget, match="cannot be read"):
        load_target(tmp_path)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidTarget, match=r"mine\.toml: cannot be read: not UTF-8 text"):
        load_target(tmp_path / "mine.toml")


def test_the_shipped_targets_are_these() -> None:
    assert set(target_names()) == SHIPPED
    assert target_names() == sorted(target_names())


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_shipped_target_loads_with_a_source_for_every_fact(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    for fact in ("memory.ram", "memory.app_share", "memory.bandwidth", "compute.isa"):
        assert target.sources[fact]
    for fact in ("compute.cores", "compute.fp32", "compute.int8"):
        assert target.sources[fact]
    assert all(f"runtime.{runtime.name}" in target.sources for runtime in target.runtimes)


@pytest.mark.parametrize("name", sorted(SHIPPED - {"host"}))
def test_a_shipped_target_is_of_the_kind_that_its_name_says(name: str) -> None:
    assert name.startswith(f"{load_target(name).kind}-")


@pytest.mark.parametrize("name", sorted(SHIPPED - {"host"}))
def test_a_shipped_peak_rate_is_the_product_that_its_source_shows(name: str) -> None:
    target = load_target(name)
    for rate, key in ((target.compute.fp32, "fp32"), (target.compute.int8, "int8")):
        factors = re.match(
            r"calculated: (\d+) cores × ([\d.]+) GHz × (\d+) (?:fl)?op/cycle",
            target.sources[f"compute.{key}"],
        )
        assert factors
        cores, gigahertz, per_cycle = map(float, factors.groups())
        assert cores == target.compute.cores
        assert gigahertz * 1e9 == target.compute.clock
        assert rate == pytest.approx(cores * gigahertz * 1e9 * per_cycle)


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_shipped_target_can_always_fall_back_to_float(name: str) -> None:
    for runtime in load_target(name).runtimes:
        assert set(runtime.kernels) == set(LayerKind)
        assert all(Precision.FP32 in known for known in runtime.kernels.values())


def test_an_old_runtime_lacks_what_it_computes_wrong() -> None:
    (runtime,) = load_target("robot-raspberry-pi-4").runtimes
    listed = {precision for known in runtime.kernels.values() for precision in known}
    assert listed == {Precision.INT8_STATIC, Precision.FP16, Precision.FP32}


def test_the_three_watt_robot_has_three_watts_above_idle() -> None:
    target = load_target("robot-3w")
    assert target.budget.power == pytest.approx(3.0)
    assert target.budget.rate is not None


def test_the_host_is_this_machine() -> None:
    host = load_target("host")
    assert host.is_this_machine
    assert 1 <= host.compute.cores <= (os.cpu_count() or 1)
    assert host.memory.ram > 0
    assert host.compute.int8 > host.compute.fp32 > 0
    assert host.sources["memory.ram"] == "detected"
    assert host.sources["compute.fp32"].startswith("calculated: ")
    assert load_target("host") == host


def test_what_a_host_file_states_is_not_detected(tmp_path: Path) -> None:
    shipped = (ROOT / "targets" / "host.toml").read_text()
    stated = shipped.replace("[memory]", '[memory]\nram = "1 GB"')
    (tmp_path / "mine.toml").write_text(stated + '"memory.ram" = "a smaller machine"\n')
    host = load_target(tmp_path / "mine.toml")
    assert host.memory.ram == 1_000_000_000
    assert host.sources["memory.ram"] == "a smaller machine"


def test_what_a_host_file_states_needs_its_source(tmp_path: Path) -> None:
    shipped = (ROOT / "targets" / "host.toml").read_text()
    (tmp_path / "mine.toml").write_text(shipped.replace("[memory]", '[memory]\nram = "1 GB"'))
    with pytest.raises(InvalidTarget, match=r"memory\.ram: no source"):
        load_target(tmp_path / "mine.toml")


def test_a_malformed_host_file_is_refused_like_any_other(tmp_path: Path) -> None:
    shipped = (ROOT / "targets" / "host.toml").read_text()
    for right, wrong in (("kind", "memory = 1\nkind"), ("[sources]", "[source]")):
        text = shipped.replace("[memory]\napp_share = 0.5\n", "") if "1" in wrong else shipped
        (tmp_path / "mine.toml").write_text(text.replace(right, wrong, 1))
        with pytest.raises(InvalidTarget):
            load_target(tmp_path / "mine.toml")


def test_an_installed_package_brings_its_own_targets(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "edgebuild", tmp_path / "edgebuild", ignore=ignored)
    (tmp_path / "edgebuild" / "targets").mkdir()
    shutil.copy(BROKEN / "valid.toml", tmp_path / "edgebuild" / "targets")
    code = "from edgebuild.inputs.target_file import target_names; print(target_names())"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == "['valid']"


def test_the_door_opens_without_heavy_packages() -> None:
    code = "import sys, edgebuild.inputs.target_file; print(*sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"numpy", "torch", "onnxruntime", "scipy"} & set(shown.stdout.split())


def test_all_targets_load_in_a_blink() -> None:
    load_target("host")
    fastest = min(_seconds_to_load_all() for _ in range(3))
    assert fastest < 0.2


def _seconds_to_load_all() -> float:
    start = time.perf_counter()
    for name in target_names():
        load_target(name)
    return time.perf_counter() - start
