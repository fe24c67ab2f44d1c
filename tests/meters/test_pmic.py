"""A Raspberry Pi 5's rails are added up in either format, and the fit is labeled as one."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgebuild.meters.pmic import OFFSET, SLOPE, Pmic, sum_of_rails
from edgebuild.vocabulary.contracts import Completed
from edgebuild.vocabulary.errors import DeviceError, MeterUnavailable
from edgebuild.vocabulary.measurement import Evidence

RECORDINGS = Path(__file__).parent / "recordings"
RAILS = 1.9328  # watts, added up outside of the code
REASONS = {
    "raspberry-pi-5-rail-without-volts": "no volts of VDD_CORE: the sum would be too low",
    "raspberry-pi-4": "no rail in what `vcgencmd pmic_read_adc` printed",
}


class Board:
    """A device whose firmware answers so."""

    name = "a board"

    def __init__(self, answer: Completed | DeviceError) -> None:
        self._answer = answer

    def glance(self, command: list[str]) -> Completed:
        assert list(command) == ["vcgencmd", "pmic_read_adc"]
        if isinstance(self._answer, DeviceError):
            raise self._answer
        return self._answer


@pytest.mark.parametrize("form", ["numbered", "plain"])
def test_both_formats_give_the_same_sum(form: str) -> None:
    text = (RECORDINGS / f"raspberry-pi-5-{form}.txt").read_text()
    assert sum_of_rails(text) == pytest.approx(RAILS, abs=2e-3)


def test_what_has_volts_alone_adds_nothing() -> None:
    lines = (RECORDINGS / "raspberry-pi-5-numbered.txt").read_text().splitlines()
    rails = [line for line in lines if "EXT5V" not in line and "BATT" not in line]
    assert len(rails) == len(lines) - 2
    assert sum_of_rails("\n".join(rails)) == sum_of_rails("\n".join(lines))


def test_the_fit_is_a_calibrated_model_and_says_whose() -> None:
    meter = Pmic(str(RECORDINGS / "raspberry-pi-5-numbered.txt"))
    sensor = meter.sensor()
    assert sensor.evidence is Evidence.CALIBRATED_MODEL
    assert "third party's fit" in sensor.note
    (sample,) = meter.read()
    assert sample.watts == pytest.approx(SLOPE * RAILS + OFFSET, abs=2e-3)


def test_a_device_is_asked_by_command() -> None:
    text = (RECORDINGS / "raspberry-pi-5-plain.txt").read_text()
    meter = Pmic("", Board(Completed(0, text, "")))
    assert meter.read()[0].watts == pytest.approx(SLOPE * RAILS + OFFSET, abs=2e-3)


@pytest.mark.parametrize("recording", REASONS)
def test_an_answer_without_the_rails_says_why(recording: str) -> None:
    with pytest.raises(MeterUnavailable, match=REASONS[recording]):
        Pmic(str(RECORDINGS / f"{recording}.txt")).sensor()


@pytest.mark.parametrize(
    "answer",
    [Completed(255, "", "Can't open device file: /dev/vcio"), DeviceError("Can't open device")],
    ids=["exit code", "no command"],
)
def test_a_command_that_fails_says_why(answer: Completed | DeviceError) -> None:
    with pytest.raises(MeterUnavailable, match="pmic: vcgencmd pmic_read_adc: Can't open device"):
        Pmic("", Board(answer)).sensor()


def test_a_machine_without_the_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MeterUnavailable, match="vcgencmd.*No such file"):
        Pmic().sensor()
