"""A manifest survives its file, and a damaged one is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgebuild.bundles.manifest import (
    FILE,
    SCHEMA,
    Bundle,
    dump_manifest,
    is_bundle,
    load_bundle,
)
from edgebuild.vocabulary.errors import InvalidBundle
from edgebuild.vocabulary.measurement import Evidence
from edgebuild.vocabulary.verdict import Status


def rewrite(bundle: Bundle, change: Callable[[dict[str, object]], object]) -> None:
    """Changes the manifest as JSON."""
    file = bundle.path / FILE
    text = json.loads(file.read_text())
    change(text)
    file.write_text(json.dumps(text))


def refused(folder: Path) -> str:
    """The refusal, which is one line."""
    with pytest.raises(InvalidBundle) as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_manifest_survives_its_file(bundle: Bundle) -> None:
    loaded = load_bundle(bundle.path)
    assert dump_manifest(loaded.manifest) == (bundle.path / FILE).read_bytes()
    assert loaded == bundle
    assert loaded.verdict is loaded.manifest.verdict


def test_what_is_read_has_the_types_that_were_written(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert all(isinstance(line.status, Status) for line in manifest.verdict.lines)
    assert all(isinstance(f.evidence, Evidence) for f in manifest.figures.values())
    assert manifest.recipe in [trial.recipe for trial in manifest.tried]
    assert manifest.schema == SCHEMA


def test_a_bundle_is_told_by_its_manifest(bundle: Bundle) -> None:
    assert is_bundle(bundle.path)
    (bundle.path / "manifest.json").write_text('{"name": "of another tool"}')
    assert not is_bundle(bundle.path)
    assert not is_bundle(bundle.path / "nowhere")


# ---- refused


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    found = refused(tmp_path)
    assert "is no bundle: manifest.json cannot be read (No such file" in found
    assert "Give the folder that `edgebuild build -o` wrote" in found


def test_a_file_is_no_bundle(bundle: Bundle) -> None:
    assert "is no bundle" in refused(bundle.path / FILE)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_a_truncated_manifest_is_damaged(share: float, bundle: Bundle) -> None:
    file = bundle.path / FILE
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    found = refused(bundle.path)
    assert "is damaged or from another version of edgebuild: Invalid JSON" in found


@pytest.mark.parametrize("content", [b"\xff\xfe", b"null", b"[]", b"{}", b'"text"'])
def test_what_is_no_manifest_is_damaged(content: bytes, bundle: Bundle) -> None:
    (bundle.path / FILE).write_bytes(content)
    assert "is damaged or from another version of edgebuild" in refused(bundle.path)


def test_a_missing_fact_is_named(bundle: Bundle) -> None:
    rewrite(bundle, lambda text: text.pop("verdict"))
    assert "verdict: Field required" in refused(bundle.path)


def test_a_fact_of_another_type_is_named_with_its_place(bundle: Bundle) -> None:
    rewrite(bundle, lambda text: text["artifact"].update(size="large"))  # type: ignore[attr-defined]
    assert "artifact: size: Input should be a valid integer" in refused(bundle.path)


def test_a_status_that_is_none_is_refused(bundle: Bundle) -> None:
    def invent(text: dict[str, object]) -> None:
        text["verdict"]["lines"][0]["status"] = "certified"  # type: ignore[index]

    rewrite(bundle, invent)
    assert "verdict: lines: 0: status: Input should be 'met'" in refused(bundle.path)


def test_another_schema_is_refused_with_both_numbers(bundle: Bundle) -> None:
    rewrite(bundle, lambda text: text.update(schema=SCHEMA + 1))
    assert f"has schema {SCHEMA + 1}; this edgebuild reads {SCHEMA}" in refused(bundle.path)


def test_a_manifest_of_before_there_were_meters_is_read(bundle: Bundle) -> None:
    def date_back(text: dict[str, object]) -> None:
        measurement, figures = text["measurement"], text["figures"]
        assert isinstance(measurement, dict)
        assert isinstance(figures, dict)
        for key in ("began_at", "ended_at", "inferences"):
            del measurement[key]
        figures["power"]["evidence"] = "predicted"

    rewrite(bundle, date_back)
    loaded = load_bundle(bundle.path).manifest
    assert loaded.measurement.began_at is None
    assert loaded.figures["power"].evidence is Evidence.PREDICTED


def test_modelled_power_is_a_bound_and_leaves_its_line_unknown(bundle: Bundle) -> None:
    manifest = load_bundle(bundle.path).manifest
    (line,) = [line for line in manifest.verdict.lines if line.name == "power"]
    assert line.status is Status.UNKNOWN
    assert line.figure == manifest.figures["power"]
    assert line.figure.evidence is Evidence.MODELLED_BOUND
