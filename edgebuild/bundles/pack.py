"""Writes a bundle whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgebuild import runner
from edgebuild.bundles.destination import check_writable
from edgebuild.bundles.manifest import FILE, Bundle, Manifest, dump_manifest, is_bundle
from edgebuild.vocabulary.errors import InvalidDestination

PAGE_NOTICE = """
report.html
    Draws with plotly.js: MIT, Copyright (c) Plotly, Inc.; its terms stand in the file.
"""


def check_destination(folder: Path) -> None:
    """Refuses, before any work, a place where a bundle cannot or must not be written.

    Raises:
        InvalidDestination: a file, a folder that holds something else, or no right to write.
    """
    if folder.resolve() == Path.cwd():
        raise InvalidDestination(f"{folder} is the current folder: give one of the bundle's own")
    if os.path.ismount(folder):
        raise InvalidDestination(f"{folder} is a mount point: give a folder inside it")
    if os.path.lexists(folder) and not folder.is_dir():
        raise InvalidDestination(f"{folder} is no folder: give a folder to write the bundle to")
    if folder.is_dir() and any(folder.iterdir()) and not is_bundle(folder):
        raise InvalidDestination(
            f"{folder} exists and is no bundle: it will not be overwritten. Give another folder"
        )
    check_writable(folder)


def pack(
    folder: Path,
    manifest: Manifest,
    model: Path,
    golden: Mapping[str, Sequence[np.ndarray]],
    report: str,
    page: str | None = None,
    aside: Path | None = None,
) -> Bundle:
    """Writes the bundle beside its place, then moves it there; a bundle that was there goes.

    It goes to `aside` if that is given, and for good otherwise.

    `golden` maps "input" and "output" to arrays, (count, …) each; `report` becomes report.md, and
    `page`, if there is one, report.html.
    """
    parent = folder.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.part-", dir=parent))
    try:
        shutil.copyfile(model, scratch / manifest.artifact.file)
        _write_golden(scratch / manifest.artifact.golden.folder, golden)
        shutil.copyfile(runner.__file__, scratch / "run.py")
        (scratch / "report.md").write_text(report, encoding="utf-8")
        notice = _notice(manifest)
        if page is not None:
            (scratch / "report.html").write_text(page, encoding="utf-8")
            notice += PAGE_NOTICE
        (scratch / "NOTICE").write_text(notice, encoding="utf-8")
        manifest = replace(manifest, files=_digests(scratch))
        (scratch / FILE).write_bytes(dump_manifest(manifest))
        scratch.chmod(0o755)
        _move(scratch, folder, aside)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Bundle(folder, manifest)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_golden(folder: Path, golden: Mapping[str, Sequence[np.ndarray]]) -> None:
    folder.mkdir()
    for kind, arrays in golden.items():
        for index, array in enumerate(arrays):
            np.save(folder / f"{kind}-{index}.npy", array)


def _notice(manifest: Manifest) -> str:
    """What went in, and under which license; the model's own terms are its makers'."""
    lines = [f"{manifest.workload.name}, built by edgebuild {manifest.edgebuild}.", ""]
    lines += [f"{name}\n    {terms}\n" for name, terms in manifest.workload.notices.items()]
    if not manifest.workload.notices:
        lines.append("The workload states no license for its network and data.")
    lines.append(
        f"{manifest.artifact.golden.folder}/\n    Samples of the validation split; they are under "
        "the terms of the data that they are from.\n"
    )
    lines.append("run.py\n    Apache-2.0, from edgebuild.")
    return "\n".join(lines) + "\n"


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def _move(scratch: Path, folder: Path, aside: Path | None) -> None:
    """Puts the scratch folder in place; what was there is gone only once the new one stands."""
    if not folder.exists():
        os.rename(scratch, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old-", dir=folder.absolute().parent))
    try:
        os.rename(folder, old / "bundle")
        try:
            os.rename(scratch, folder)
        except BaseException:
            os.rename(old / "bundle", folder)
            raise
        if aside is not None:
            os.rename(old / "bundle", aside)
    finally:
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
