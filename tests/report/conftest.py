"""A manifest to report on."""

from __future__ import annotations

import pytest
import small_build
from conftest import Workshop

from edgebuild.bundles.manifest import Bundle


@pytest.fixture(scope="session")
def built(workshop: Workshop) -> Bundle:
    return small_build.bundle(workshop.folder)
