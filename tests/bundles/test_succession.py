"""No bundle is replaced without a word where it differs, nor lost where it was the better one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from listening import Listening

from edgebuild.bundles.manifest import FILE, Bundle, Manifest, dump_manifest, load_bundle
from edgebuild.bundles.pack import pack
from edgebuild.bundles.succession import place_aside
from edgebuild.vocabulary.verdict import Status, Verdict


def judged(manifest: Manifest, status: Status) -> Manifest:
    line = replace(manifest.verdict.lines[0], status=status)
    return replace(manifest, verdict=Verdict((line,)))


def placed(folder: Path, manifest: Manifest) -> None:
    (folder / FILE).write_bytes(dump_manifest(manifest))


def test_one_that_kept_its_budget_is_put_beside_one_that_breaches(bundle: Bundle) -> None:
    placed(bundle.path, judged(bundle.manifest, Status.PREDICTED))
    new, said = judged(bundle.manifest, Status.BREACHED), Listening()
    for name in ("copy-kept", "copy-kept-2"):
        aside = place_aside(bundle.path, new, said)
        assert aside == bundle.path.with_name(name)
        golden = {k: [np.load(bundle.path / f"golden/{k}-0.npy")] for k in ("input", "output")}
        model = bundle.path / bundle.manifest.artifact.file
        pack(bundle.path, new, model, golden, "a report", aside=aside)
        assert load_bundle(bundle.path).verdict.status is Status.BREACHED
        assert load_bundle(aside).verdict.status is Status.PREDICTED
        placed(bundle.path, judged(bundle.manifest, Status.PREDICTED))
    assert "kept its budget" in said.said[0]
    assert said.said[0].endswith("copy-kept")
    assert not list(bundle.path.parent.glob(".*"))


def test_one_of_another_workload_is_named(bundle: Bundle) -> None:
    other = replace(bundle.manifest.workload, name="other")
    said = Listening()
    new = replace(judged(bundle.manifest, Status.MET), workload=other)
    assert place_aside(bundle.path, new, said) is None
    (text,) = said.said
    assert "replaces the bundle of small for robot-raspberry-pi-5, which kept its budget" in text


@pytest.mark.parametrize(("old", "new"), [("met", "met"), ("breached", "met"), ("breached",) * 2])
def test_the_same_built_again_is_replaced(bundle: Bundle, old: str, new: str) -> None:
    placed(bundle.path, judged(bundle.manifest, Status(old)))
    said = Listening()
    assert place_aside(bundle.path, judged(bundle.manifest, Status(new)), said) is None
    assert said.said == []


def test_one_that_cannot_be_read_is_said_to_be_replaced(bundle: Bundle) -> None:
    placed(bundle.path, replace(bundle.manifest, schema=1))
    said = Listening()
    assert place_aside(bundle.path, bundle.manifest, said) is None
    assert "cannot read" in said.said[0]


def test_a_folder_without_a_bundle_says_nothing(bundle: Bundle, tmp_path: Path) -> None:
    said = Listening()
    assert place_aside(tmp_path / "new", bundle.manifest, said) is None
    assert said.said == []
