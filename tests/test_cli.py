"""The command line as a user meets it: exit codes, one clear line, --json."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from background import heeding_interrupts

ROOT = Path(__file__).parents[1]
DIGITS = str(ROOT / "benchmarks" / "digits.py")
PROGRAM = str(Path(sys.executable).with_name("edgebuild"))


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEBUILD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def edgebuild(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist") / "digits"
    done = edgebuild(
        *("build", DIGITS, "-t", "phone-budget", "-o", str(out)),
        *("--precision", "int8-static", "--format", "tflite"),
    )
    assert done.returncode == 0, done.stderr
    return out


BAD_INPUT = {
    "an unknown command": (["bild"], "Did you mean 'build'?"),
    "no target": (["build", DIGITS], "target"),
    "an unknown target": (["build", DIGITS, "-t", "raspberry-pi-5"], "robot-raspberry-pi-5"),
    "a target without a unit": (
        ["build", DIGITS, "-t", str(ROOT / "tests/targets/no-unit.toml")],
        "has no unit",
    ),
    "a budget without a unit": (
        ["build", DIGITS, "-t", "host", "--latency", "22"],
        "budget line latency_p99: '22' has no unit",
    ),
    "a budget above the device's facts": (
        ["build", DIGITS, "-t", "robot-raspberry-pi-5", "--memory", "64 GB"],
        "more than the 5.6 GB",
    ),
    "an unknown precision": (["build", DIGITS, "-t", "host", "--precision", "int7"], "int7"),
    "a workload that is not there": (["build", "no-such.py", "-t", "host"], "no-such.py"),
    "a network in train mode": (
        ["build", str(ROOT / "tests/workloads/train-mode.py"), "-t", "host"],
        ".eval()",
    ),
    "an empty split": (
        ["build", str(ROOT / "tests/workloads/empty-test-split.py"), "-t", "host"],
        "the test split is empty",
    ),
    "an ONNX file": (["build", "model.onnx", "-t", "host"], "ONNX"),
    "a folder that is no bundle": (["explain", str(ROOT)], "is no bundle"),
}


@pytest.mark.parametrize(("words", "told"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = edgebuild(*words)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2
    assert len(errors) == 1
    assert told in errors[0]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    done = edgebuild("build", DIGITS, "-t", "host", "-o", str(tmp_path))
    assert done.returncode == 2
    assert "will not be overwritten" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_breached_budget_is_exit_code_3_and_says_by_how_much(tmp_path: Path) -> None:
    done = edgebuild(
        *("build", DIGITS, "-t", "host", "-o", str(tmp_path / "out"), "--storage", "1 kB"),
        *("--precision", "fp32", "--format", "tflite", "--minutes", "0"),
    )
    assert done.returncode == 3
    assert "Does not fit host" in done.stderr
    assert "% over" in done.stderr
    assert "The time was up before the search was done" in " ".join(done.stderr.split())
    assert (tmp_path / "out" / "manifest.json").exists()


def test_strict_asks_for_measured_lines(tmp_path: Path) -> None:
    words = ["build", DIGITS, "-t", "phone-budget", "-o", str(tmp_path / "out")]
    options = ["--precision", "int8-static", "--format", "tflite"]
    assert edgebuild(*words, *options, "--strict").returncode == 3


def test_a_bundle_can_be_built_anew_in_its_place(dist: Path) -> None:
    done = edgebuild(
        *("build", DIGITS, "-t", "phone-budget", "-o", str(dist), "--json"),
        *("--precision", "int8-static", "--format", "tflite"),
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["artifact"]["format"] == "tflite"


def test_explain_names_what_was_tried_and_the_verdict(dist: Path) -> None:
    done = edgebuild("explain", str(dist))
    assert done.returncode == 0
    assert "int8-static" in done.stderr
    assert "No budget line of phone-budget is breached" in " ".join(done.stderr.split())


def test_bench_measures_again(dist: Path) -> None:
    done = edgebuild("bench", str(dist), "--seconds", "0.1", "--count", "50", "--json")
    assert done.returncode == 0
    [found] = json.loads(done.stdout)["devices"]
    assert found["device"] == "local"
    assert len(found["measurement"]["latencies"]) >= 50


def test_bench_runs_on_to_see_what_is_left_and_judges_no_other_devices_budget(dist: Path) -> None:
    words = ("--seconds", "0.1", "--count", "50", "--sustained", "3 s", "--json")
    done = edgebuild("bench", str(dist), *words)
    assert done.returncode == 0
    [found] = json.loads(done.stdout)["devices"]
    assert found["outcome"] is None
    assert found["unjudged"].endswith("which is not phone-budget")
    said = " ".join(done.stderr.replace("│", " ").split())
    assert "budget of phone-budget not judged: measured on host" in said
    lasting = found["sustained"]
    assert 3 <= lasting["seconds"] < 6
    assert len(lasting["windows"]) == 6
    assert [lasting[end]["begins"] for end in ("first", "last")] == [0, pytest.approx(2, abs=0.9)]
    whole = sum(window["inferences"] for window in lasting["windows"])
    assert 0 < lasting["first"]["inferences"] + lasting["last"]["inferences"] < whole
    assert "at the end; " in " ".join(done.stderr.split())


def test_bench_measures_on_several_devices_and_says_which_failed(dist: Path) -> None:
    devices = ["local", "twin:", "twin:8MB", "adb://no-such-serial"]
    words = [word for device in devices for word in ("--device", device)]
    done = edgebuild("bench", str(dist), "--seconds", "0.1", "--count", "50", "--json", *words)
    assert done.returncode == 4
    found = {one["device"]: one for one in json.loads(done.stdout)["devices"]}
    assert list(found) == devices
    assert len(found["local"]["measurement"]["latencies"]) >= 50
    assert found["twin:"]["memory_trial"]["fit"] in ("FITS", "NOT_ENFORCED")
    assert "memory of phone-budget" in found["twin:"]["where"]
    assert found["twin:8MB"]["memory_trial"]["fit"] in ("OOM_KILLED", "NOT_ENFORCED")
    assert "adb" in found["adb://no-such-serial"]["error"]
    assert "Traceback" not in done.stderr


def test_bench_names_the_nearest_transport_and_device(dist: Path, tmp_path: Path) -> None:
    (tmp_path / "devices.toml").write_text('kitchen = "twin:2GB"\n')
    words = (PROGRAM, "bench", str(dist), "--seconds", "0.1", "--count", "9", "--json", "--device")

    def bench(device: str) -> subprocess.CompletedProcess[str]:
        command = [*words, device]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    for name, nearest in (("kitchn", "'kitchen'"), ("shh://pi@shelf", "'ssh'")):
        done = bench(name)
        assert done.returncode == 2
        assert f"Did you mean {nearest}?" in done.stderr
    [found] = json.loads(bench("kitchen").stdout)["devices"]
    assert found["device"] == "kitchen"
    assert "2 GB" in found["where"]


def test_verify_passes_on_an_intact_bundle(dist: Path) -> None:
    done = edgebuild("verify", str(dist), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["relative_error"] == 0.0


def test_verify_names_a_changed_file(dist: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(dist), str(copy)], check=True)
    (copy / "run.py").write_text("print('something else')\n")
    done = edgebuild("verify", str(copy))
    assert done.returncode == 2
    assert "run.py was changed" in done.stderr


def test_targets_lists_all_and_shows_one_with_its_sources() -> None:
    everything = edgebuild("targets", "--json")
    assert len(json.loads(everything.stdout)) >= 11
    one = edgebuild("targets", "car-sa8295p")
    assert "22 ms" in one.stdout
    assert "source" in one.stdout


SWALLOWS = """
import os, signal, time
from edgebuild import cli
cli.PATIENCE = 0.2
cli._interrupt_until_heard()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("swallowed")
try:
    time.sleep(20)
except KeyboardInterrupt:
    print("heard")
"""


def test_an_interrupt_that_a_library_swallows_comes_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWS],
        capture_output=True,
        text=True,
        timeout=15,
        check=True,
        preexec_fn=heeding_interrupts,
    )
    assert done.stdout.split() == ["swallowed", "heard"]


def test_an_interrupted_command_says_how_to_go_on(tmp_path: Path) -> None:
    words = (PROGRAM, "build", DIGITS, "-t", "host", "-o", str(tmp_path / "out"))
    environment = {**os.environ, "EDGEBUILD_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(
        words,
        env=environment,
        stderr=subprocess.PIPE,
        preexec_fn=heeding_interrupts,
    ) as process:
        assert process.stderr is not None
        # The first line, as soon as it is there: everything that interrupts is in place by then.
        os.read(process.stderr.fileno(), 10)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read().decode()
    assert process.returncode == 130
    assert said.endswith("interrupted: run the same command again to go on\n")
