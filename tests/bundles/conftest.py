"""A bundle to look at, and copies of it to break."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import small_build
from conftest import Workshop

from edgebuild.bundles.manifest import Bundle, load_bundle


@pytest.fixture(scope="session")
def built(workshop: Workshop) -> Bundle:
    return small_build.bundle(workshop.folder)


@pytest.fixture
def bundle(built: Bundle, tmp_path: Path) -> Bundle:
    """A copy that a test may change."""
    shutil.copytree(built.path, tmp_path / "copy")
    return load_bundle(tmp_path / "copy")
