"""An emulated processor runs ARM64 code alone, says which one it is, and leaks into nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from arm import needs_arm64
from conftest import ARM64_PARTS

from edgebuild import arm64, catalog
from edgebuild.devices.emulated import CPUS
from edgebuild.vocabulary.contracts import Device
from edgebuild.vocabulary.errors import DeviceError, InputError
from edgebuild.vocabulary.units import Seconds

SOON = Seconds(120.0)
IMPORT_ALL = """
import ai_edge_litert.interpreter, json, numpy, onnxruntime, platform
print(json.dumps([platform.machine(), numpy.__version__, onnxruntime.__version__]))
"""


@pytest.fixture
def device(users_parts: None) -> Iterator[Device]:
    with catalog.device("emulated://cortex-a76") as entered:
        yield entered


@needs_arm64
@pytest.mark.parametrize("cpu", CPUS)
def test_every_processor_has_the_features_that_it_tells(cpu: str) -> None:
    with catalog.device(f"emulated://{cpu}") as entered:
        done = entered.run(["python", "-c", "print(open('/proc/cpuinfo').read())"], SOON)
    assert f"{CPUS[cpu].part:#x}" in done.stdout
    assert done.stdout.count("processor\t") == os.cpu_count()
    assert entered.name == f"{cpu}, emulated by QEMU 7.2"


@needs_arm64
def test_its_python_has_numpy_and_both_runtimes_in_the_releases_that_are_here(
    device: Device,
) -> None:
    import numpy
    import onnxruntime

    done = device.run(["python", "-c", IMPORT_ALL], SOON)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["aarch64", numpy.__version__, onnxruntime.__version__]


@needs_arm64
def test_output_errors_and_exit_code_pass_through(device: Device) -> None:
    code = "import sys; print('said'); print('wailed', file=sys.stderr); sys.exit(7)"
    done = device.run(["python", "-c", code], SOON)
    assert (done.returncode, done.stdout, done.stderr) == (7, "said\n", "wailed\n")


@needs_arm64
def test_a_command_that_takes_too_long_is_killed(device: Device) -> None:
    with pytest.raises(DeviceError, match="did not end within 1 s"):
        device.run(["python", "-c", "import time; time.sleep(60)"], Seconds(1.0))


@needs_arm64
@pytest.mark.parametrize(
    "start", ["subprocess.run(['true'])", "os.system('true')", "os.execv('/bin/true', ['true'])"]
)
def test_a_child_process_which_would_not_be_emulated_is_refused(device: Device, start: str) -> None:
    done = device.run(["python", "-c", f"import os, subprocess; {start}"], SOON)
    assert done.returncode == 1
    assert done.reason.startswith("OSError: no child process is emulated")


@needs_arm64
def test_a_program_for_another_processor_is_refused(device: Device) -> None:
    done = device.run([sys.executable, "-c", "print('here')"], SOON)
    assert done.returncode != 0
    assert done.stdout == ""


@needs_arm64
def test_variables_of_this_machine_mislead_it_no_more_than_its_own_mislead_us(
    device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('the wrong one')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))
    assert device.run(["python", "-c", "import numpy"], SOON).returncode == 0
    assert os.environ["PYTHONPATH"] == str(tmp_path)


@needs_arm64
def test_files_are_where_they_are_here(device: Device, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("text")
    assert device.push(tmp_path / "there") == str(tmp_path / "there")
    device.pull(str(tmp_path / "there"), tmp_path / "here")
    assert (tmp_path / "here").read_text() == "text"


@needs_arm64
def test_python_refuses_to_be_another_processors(tmp_path: Path) -> None:
    assert ARM64_PARTS is not None
    done = subprocess.run(
        [sys.executable, "-c", "print('here')"],
        env={"PYTHONPATH": str(ARM64_PARTS.site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "this Python does not run on ARM64, but on" in done.stderr


# ---- nothing is fetched for these


def test_an_unknown_processor_is_told_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'cortexa76' is emulated\. Did you mean 'cortex-a76'\?"):
        catalog.device("emulated://cortexa76")


def test_without_a_name_it_is_the_processor_of_a_raspberry_pi_5() -> None:
    assert catalog.device("emulated:").name == "emulated cortex-a76"


@pytest.fixture
def nothing_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("EDGEBUILD_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_without_apt_it_is_told_what_is_missing(
    nothing_fetched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(nothing_fetched))
    with pytest.raises(DeviceError, match="apt-get is missing: the ARM64 emulator"):
        arm64.parts()


def test_without_a_network_the_reason_is_told_and_nothing_is_left(
    nothing_fetched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend = nothing_fetched / "apt-get"
    pretend.write_text("#!/bin/sh\necho 'E: Could not resolve deb.debian.org' >&2\nexit 100\n")
    pretend.chmod(0o755)
    monkeypatch.setenv("PATH", f"{nothing_fetched}:{os.environ['PATH']}")
    monkeypatch.setattr(arm64, "KEYRING", pretend)
    told = r"apt-get says: E: Could not resolve deb\.debian\.org\. .* is this machine online\?"
    with pytest.raises(DeviceError, match=told):
        arm64.parts()
    assert list((nothing_fetched / "cache" / "parts").iterdir()) == []
