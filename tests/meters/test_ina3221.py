"""A Jetson's rails are volts times amperes; which of them make the module is known, or said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgebuild.meters.ina3221 import Ina3221
from edgebuild.vocabulary.errors import MeterUnavailable
from edgebuild.vocabulary.measurement import Evidence

Recorded = Callable[[str], Path]
REASONS = {
    "pc-without-ina3221": "ina3221: no chip of that name in .*",
    "ina3221-without-labels": "ina3221: no rail is labeled in .*",
    "ina3221-rail-without-amperes": "ina3221: rail VDD_IN shows no volts and amperes",
}


def test_the_modules_input_is_not_added_to_what_hangs_behind_it(recorded: Recorded) -> None:
    meter = Ina3221(str(recorded("jetson-orin-nano")))
    sensor = meter.sensor()
    assert (sensor.evidence, sensor.is_whole) == (Evidence.MEASURED, True)
    assert sensor.scope == "VDD_IN: the module without its carrier board"
    (sample,) = meter.read()
    assert sample.watts == pytest.approx(5.048 * 0.872)


def test_three_inputs_make_an_agx_orin_and_unconnected_channels_nothing(
    recorded: Recorded,
) -> None:
    meter = Ina3221(str(recorded("jetson-agx-orin")))
    assert meter.sensor().scope.startswith("VDD_CPU_CV + VDD_GPU_SOC + VIN_SYS_5V0: the module")
    (sample,) = meter.read()
    assert sample.watts == pytest.approx(19.072 * 0.164 + 19.08 * 0.04 + 5.0 * 0.6)


def test_rails_of_a_board_that_is_not_known_are_no_whole(recorded: Recorded) -> None:
    sensor = Ina3221(str(recorded("jetson-agx-xavier"))).sensor()
    assert sensor.scope == "CPU + GPU + SOC"
    assert not sensor.is_whole
    assert "some may be missing, or overlap" in sensor.note


@pytest.mark.parametrize("recording", REASONS)
def test_what_cannot_be_read_says_why(recorded: Recorded, recording: str) -> None:
    with pytest.raises(MeterUnavailable, match=REASONS[recording]):
        Ina3221(str(recorded(recording))).read()
