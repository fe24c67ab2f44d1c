"""Manifests to report on, and a browser to read reports with."""

from __future__ import annotations

import os
import shutil
from functools import partial

import pytest
import small_build
from conftest import Workshop
from report.pages import NAMES, Browse, open_page

from edgebuild.bundles.manifest import Bundle


@pytest.fixture(scope="session")
def built(workshop: Workshop) -> Bundle:
    return small_build.bundle(workshop.folder)


@pytest.fixture(scope="session")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Browse:
    """Opens a page in headless Chromium."""
    given = os.environ.get("CHROMIUM")
    found = given or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip("no Chromium found: apt install chromium, or set CHROMIUM to its path")
    return partial(open_page, found, tmp_path_factory.mktemp("browser"))
