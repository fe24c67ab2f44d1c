"""The small workload, ready to search."""

from __future__ import annotations

import pytest
import small_build
from conftest import Workshop

from edgebuild.search.case import Case


@pytest.fixture(scope="session")
def case(workshop: Workshop) -> Case:
    return small_build.case_of(small_build.workload(), workshop.cache)
