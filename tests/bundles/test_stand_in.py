"""Only the target's own times say whether its budget is kept."""

from __future__ import annotations

import platform
from dataclasses import replace

import pytest

from edgebuild import catalog
from edgebuild.bundles.bench import Benched, Effort, bench
from edgebuild.bundles.manifest import Bundle
from edgebuild.bundles.setup import refuse_unfit
from edgebuild.bundles.stand_in import other_processor, why_not_target
from edgebuild.inputs.target_file import load_target
from edgebuild.vocabulary.errors import InputError
from edgebuild.vocabulary.target import Target
from edgebuild.vocabulary.units import Seconds

SHORT = Effort(seconds=0.0, count=50)


def benched(bundle: Bundle, target: Target, device: str) -> Benched:
    """The bundle as if it were built for that target under a budget that anything keeps."""
    budget = replace(bundle.manifest.budget, latency_p99=Seconds(3600.0))
    manifest = replace(bundle.manifest, target=target, budget=budget)
    with catalog.device(device) as entered:
        return bench(replace(bundle, manifest=manifest), device, entered, SHORT)


def test_this_machine_does_not_judge_another_devices_budget(built: Bundle) -> None:
    found = benched(built, load_target("robot-raspberry-pi-5"), "local")
    assert found.measurement is not None
    assert found.outcome is None
    assert found.unjudged == f"measured on {found.where}, which is not robot-raspberry-pi-5"


def test_this_machine_judges_its_own_budget(built: Bundle) -> None:
    found = benched(built, load_target("host"), "local")
    assert found.outcome is not None
    assert found.unjudged == ""


@pytest.mark.parametrize("target", ["host", "robot-raspberry-pi-5"])
def test_a_twin_never_judges_times(built: Bundle, target: str) -> None:
    found = benched(built, load_target(target), "twin:2GB")
    assert found.outcome is None
    assert "this machine with the memory of 2GB" in found.unjudged


def test_a_host_of_another_processor_is_another_machine() -> None:
    other = "aarch64" if platform.machine() != "aarch64" else "x86_64"
    isa = {"aarch64": "armv8.2-a", "x86_64": "x86-64"}[other]
    host = load_target("host")
    target = replace(host, compute=replace(host.compute, isa=isa))
    with catalog.device("local") as device:
        said = f"host is {platform.machine()}, and host is {other}"
        assert why_not_target(device, "host", target) == said
        # The same rule as `build --device`.
        assert other_processor(device, target, platform.machine()) == said
        with pytest.raises(InputError, match=said):
            refuse_unfit(device, target, [])
