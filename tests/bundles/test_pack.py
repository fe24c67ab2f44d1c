"""A bundle is written whole or not at all, and never over something else."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import small_build

from edgebuild.bundles import pack as pack_module
from edgebuild.bundles.manifest import Bundle, load_bundle
from edgebuild.bundles.pack import check_destination, file_digest, pack
from edgebuild.vocabulary.errors import InvalidDestination

FULL = OSError(errno.ENOSPC, "No space left on device")


def packed(built: Bundle, folder: Path, report: str = "a report") -> Bundle:
    """The built bundle's contents, packed anew."""
    golden = {
        kind: [np.load(built.path / "golden" / f"{kind}-0.npy")] for kind in ("input", "output")
    }
    model = built.path / built.manifest.artifact.file
    return pack(folder, built.manifest, model, golden, report)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# ---- where it may go


@pytest.mark.parametrize("place", ["new", "new/inside/new"])
def test_a_place_that_is_not_there_yet_is_fine(place: str, tmp_path: Path) -> None:
    check_destination(tmp_path / place)
    assert not (tmp_path / place).exists()


def test_an_empty_folder_is_fine(tmp_path: Path) -> None:
    check_destination(tmp_path)


def test_an_older_bundle_is_fine(bundle: Bundle) -> None:
    check_destination(bundle.path)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidDestination, match=r"file is no folder: give a folder"):
        check_destination(tmp_path / "file")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("nowhere", path)])
def test_what_is_neither_file_nor_folder_is_refused(make: object, tmp_path: Path) -> None:
    assert callable(make)
    make(tmp_path / "strange")
    with pytest.raises(InvalidDestination, match="strange is no folder"):
        check_destination(tmp_path / "strange")


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(InvalidDestination, match="is no bundle: it will not be overwritten"):
        check_destination(tmp_path / "mine")
    assert contents(tmp_path) == {"mine/thesis.tex": b"years of work"}


def test_a_place_inside_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidDestination, match="file cannot be written to"):
        check_destination(tmp_path / "file" / "bundle")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_without_the_right_to_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InvalidDestination, match="cannot be written to: Permission denied"):
        check_destination(tmp_path / "bundle")


def test_a_place_on_which_nothing_can_be_written_is_refused() -> None:
    with pytest.raises(InvalidDestination, match="/proc cannot be written to"):
        check_destination(Path("/proc/bundle"))


# ---- whole


def test_what_is_packed_is_what_is_loaded(built: Bundle, tmp_path: Path) -> None:
    found = packed(built, tmp_path / "bundle")
    assert load_bundle(tmp_path / "bundle") == found
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_every_file_but_the_manifest_is_listed_with_its_digest(
    built: Bundle, tmp_path: Path
) -> None:
    found = packed(built, tmp_path / "bundle")
    present = set(contents(found.path)) - {"manifest.json"}
    assert present == set(found.manifest.files)
    assert present >= {"model.onnx", "run.py", "report.md", "NOTICE", "golden/input-0.npy"}
    for name, digest in found.manifest.files.items():
        assert file_digest(found.path / name) == digest
    assert found.manifest.files["model.onnx"] == found.manifest.artifact.sha256


def test_others_may_read_what_is_packed(built: Bundle, tmp_path: Path) -> None:
    assert packed(built, tmp_path / "bundle").path.stat().st_mode & 0o777 == 0o755


def test_the_notice_names_what_went_in(built: Bundle) -> None:
    notice = (built.path / "NOTICE").read_text()
    for stated in ("small", "Noise\n    CC0-1.0", "run.py\n    Apache-2.0"):
        assert stated in notice


def test_an_older_bundle_is_replaced_with_nothing_left_of_it(built: Bundle, tmp_path: Path) -> None:
    packed(built, tmp_path / "bundle", "old")
    (tmp_path / "bundle" / "added").touch()
    found = packed(built, tmp_path / "bundle", "new")
    assert contents(found.path)["report.md"] == b"new"
    assert not (found.path / "added").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_empty_folder_becomes_the_bundle(built: Bundle, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    assert load_bundle(packed(built, tmp_path / "bundle").path)


# ---- or not at all

STEPS = ["_write_golden", "_notice", "_digests", "dump_manifest", "_move"]


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=["full-disk", "interrupted"])
@pytest.mark.parametrize("step", STEPS)
def test_what_fails_midway_leaves_nothing(
    step: str,
    error: BaseException,
    built: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pack_module, step, small_build.failing(error))
    with pytest.raises(type(error)):
        packed(built, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", STEPS)
def test_what_fails_midway_leaves_the_older_bundle(
    step: str, built: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(built, tmp_path / "bundle")
    before = contents(tmp_path)
    monkeypatch.setattr(pack_module, step, small_build.failing(FULL))
    with pytest.raises(OSError, match="No space"):
        packed(built, tmp_path / "bundle", "another report")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_move_that_fails_brings_the_older_bundle_back(
    fails_at: int, built: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(built, tmp_path / "bundle")
    before = contents(tmp_path)
    rename, calls = os.rename, iter(range(1, 9))

    def fail_once(source: Path, destination: Path) -> None:
        if next(calls) == fails_at:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, destination)

    monkeypatch.setattr(pack_module.os, "rename", fail_once)
    with pytest.raises(OSError, match="Input/output"):
        packed(built, tmp_path / "bundle", "another report")
    assert contents(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 32 kB, where this user may mount one."""
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(tmp_path)]
    if not mount or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a disk")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_disk_that_is_full_is_left_empty(built: Bundle, tiny_disk: Path) -> None:
    with pytest.raises(OSError, match="No space") as caught:
        packed(built, tiny_disk / "bundle", "a report" * 10_000)
    assert caught.value.errno == errno.ENOSPC
    assert list(tiny_disk.iterdir()) == []
