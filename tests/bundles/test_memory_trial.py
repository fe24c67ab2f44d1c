"""What a memory limit was kept by is told: pages that others had read are charged to nobody."""

from __future__ import annotations

from edgebuild.bundles.bench import with_cached
from edgebuild.vocabulary.contracts import Fit, MemoryTrial
from edgebuild.vocabulary.measurement import Measurement
from edgebuild.vocabulary.units import Bytes, Seconds


def measured(baseline: int, peak: int) -> Measurement:
    """A process that held so many megabytes before its model, and so many more with it."""
    sizes = (Bytes(peak * 10**6), Bytes(0), Bytes(baseline * 10**6))
    return Measurement((Seconds(1e-3),), Seconds(0.1), *sizes, 1.0, 1, "runtime", "machine", "now")


def trial(fit: Fit, limit: int) -> MemoryTrial:
    return MemoryTrial(fit, Bytes(limit * 10**6), Bytes(20 * 10**6), "oom_kill 0 → 0")


def test_a_process_that_held_more_than_its_limit_is_told() -> None:
    found = with_cached(trial(Fit.FITS, 30), measured(40, 9))
    assert found.fit is Fit.FITS
    assert found.evidence.startswith("oom_kill 0 → 0; but the process held 49 MB, with pages of")


def test_one_that_held_less_or_was_not_limited_is_left_as_it_is() -> None:
    for fit, limit in ((Fit.FITS, 49), (Fit.NOT_ENFORCED, 30), (Fit.OOM_KILLED, 30)):
        before = trial(fit, limit)
        assert with_cached(before, measured(40, 9)) == before
