"""A battery's current is read in the unit and sign of its model, and never while charging."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgebuild.meters.battery import Battery
from edgebuild.vocabulary.errors import MeterUnavailable

Recorded = Callable[[str], Path]
# What is taken to be what, and the watts that follow.
TAKEN = {
    "phone-microamperes-negative": ("battery", "µA, negative", 0.4125 * 4.011),
    "phone-milliamperes-positive": ("battery", "mA, positive", 0.413 * 4.011),
    "tablet-two-batteries": ("max170xx-fuelgauge", "µA, negative", 0.301 * 3.82),
}
REASONS = {
    "phone-charging": "usb is plugged in, .*: unplug it, and reach the device by Wi-Fi",
    "phone-plugged-but-discharging": "usb is plugged in",
    "phone-full": "its status is Full, not Discharging",
    "phone-without-current": "battery/current_now and voltage_now cannot be read",
    "phone-current-always-zero": "current_now is 0: this gauge does not show a current",
    "phone-volts-in-no-unit": "voltage_now is 4, in no unit that is known",
    "car-without-battery": "battery: none in",
}


@pytest.mark.parametrize("recording", TAKEN)
def test_unit_and_sign_are_told_apart_and_said(recorded: Recorded, recording: str) -> None:
    meter = Battery(str(recorded(recording)))
    supply, habit, watts = TAKEN[recording]
    sensor = meter.sensor()
    assert sensor.scope.startswith(f"{supply}: the whole device")
    assert f"current_now taken as {habit} while discharging" in sensor.note
    (sample,) = meter.read()
    assert sample.watts == pytest.approx(watts)


@pytest.mark.parametrize("recording", REASONS)
def test_what_is_not_what_the_phone_draws_says_why(recorded: Recorded, recording: str) -> None:
    with pytest.raises(MeterUnavailable, match=REASONS[recording]):
        Battery(str(recorded(recording))).read()


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("battery/status", "Charging", "its status is Charging"),
        ("usb/online", "1", "usb is plugged in"),
        ("battery/current_now", "412500", "went to 412500, which is not µA, negative"),
        ("battery/current_now", "-412", "went to -412, which is not µA, negative"),
        ("battery/current_now", "", "battery/current_now shows no number"),
    ],
)
def test_a_change_in_the_middle_ends_it(
    recorded: Recorded, file: str, text: str, reason: str
) -> None:
    root = recorded("phone-microamperes-negative")
    meter = Battery(str(root))
    assert meter.read()
    (root / file).write_text(text)
    with pytest.raises(MeterUnavailable, match=reason):
        meter.read()


def test_a_moment_without_current_is_no_change(recorded: Recorded) -> None:
    root = recorded("phone-microamperes-negative")
    meter = Battery(str(root))
    meter.sensor()
    (root / "battery/current_now").write_text("0")
    assert meter.read()[0].watts == 0
