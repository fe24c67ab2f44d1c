"""Reads a power meter in a thread while the machine idles and then runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from edgebuild.bundles.energy import draw
from edgebuild.vocabulary.contracts import Device, Meter
from edgebuild.vocabulary.errors import DeviceError, MeterUnavailable
from edgebuild.vocabulary.measurement import Measurement
from edgebuild.vocabulary.power import Draw, PowerSample, Sensor, Stretch
from edgebuild.vocabulary.units import Seconds

# What the machine still does after the commands before has passed by then.
SETTLING = Seconds(1.0)
SHORTEST_IDLE = Seconds(5.0)
# Not every `date` knows nanoseconds.
TIME = """
now=$(date +%s.%N)
case $now in
*[!0-9.]* | *.) now=$(python3 -c 'import time; print(time.time())') ;;
esac
echo "$now"
"""


@dataclass(frozen=True)
class Metered:
    """A measurement with what it drew, or why that is unavailable."""

    measurement: Measurement
    draw: Draw | None
    unavailable: str = ""


@dataclass
class Trace:
    """What a meter has shown so far, and why it stopped."""

    samples: list[PowerSample] = field(default_factory=list)
    trouble: str = ""


def metered(meter: Meter, device: Device, idle: Seconds, run: Callable[[], Measurement]) -> Metered:
    """Watches the meter while the device idles so long, at least five seconds, and then runs.

    Raises:
        MeterUnavailable: the meter cannot be read to begin with; nothing was run.
        DeviceError: the run itself failed.
    """
    sensor = meter.sensor()
    with watched(meter, sensor) as trace:
        time.sleep(SETTLING)
        began = time.time()
        time.sleep(max(idle, SHORTEST_IDLE))
        still = Stretch(began, time.time())
        measurement = run()
    try:
        if trace.trouble:
            raise MeterUnavailable(trace.trouble)
        busy = _timed_runs(measurement, device)
        count = measurement.inferences or len(measurement.latencies)
        found = draw(trace.samples, sensor, device.name, still, busy, count)
    except DeviceError as problem:
        # What was measured without the meter is as good as ever.
        return Metered(measurement, None, str(problem))
    return Metered(measurement, found)


@contextmanager
def watched(meter: Meter, sensor: Sensor) -> Iterator[Trace]:
    """Reads the meter every period until the end, and once more after it."""
    trace, done = Trace(), threading.Event()

    def watch() -> None:
        try:
            while not done.is_set():
                trace.samples += meter.read()
                done.wait(sensor.period)
            trace.samples += meter.read()
        except DeviceError as problem:
            trace.trouble = str(problem)

    thread = threading.Thread(target=watch, name=f"meter {sensor.name}", daemon=True)
    thread.start()
    try:
        yield trace
    finally:
        done.set()
        thread.join()


def _timed_runs(measurement: Measurement, device: Device) -> Stretch:
    """When the timed runs were by this machine's clock; load and warm-up are before them."""
    if measurement.began_at is None or measurement.ended_at is None:
        raise MeterUnavailable("what ran the bundle does not say when: its power is unknown")
    lead = clock_lead(device)
    return Stretch(measurement.began_at - lead, measurement.ended_at - lead)


def clock_lead(device: Device) -> Seconds:
    """How far the device's clock is ahead of this machine's, to half a round trip.

    Raises:
        MeterUnavailable: the device does not say what time it is.
    """
    before = time.time()
    done = device.glance(["sh", "-c", TIME])
    middle = (before + time.time()) / 2
    try:
        return Seconds(float(done.stdout) - middle)
    except ValueError:
        raise MeterUnavailable(f"{device.name} does not tell the time: {done.reason}") from None
