"""A long run tells heat and clock where the system does, in the syntax of old devices."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType

import pytest

from edgebuild.bundles.run_on import SCRIPT


@pytest.fixture
def sustained(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as it is on a device: beside its loader."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("sustained")


def test_heat_and_clock_are_told_where_the_system_tells_them(
    sustained: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sustained.runner, "CLOCKS", f"{tmp_path}/cpu%d/%s")
    monkeypatch.setattr(sustained, "THERMAL_ZONES", f"{tmp_path}/zone*")
    unknown = sustained.window_of(1.0, [0.002, 0.001, 0.003], [0])
    assert (unknown["temperature"], unknown["clock"]) == (None, None)
    assert (unknown["begins"], unknown["inferences"], unknown["p50"]) == (1.0, 3, 0.002)
    (tmp_path / "cpu0").mkdir()
    (tmp_path / "cpu0" / "scaling_cur_freq").write_text("1500000\n")
    (tmp_path / "zone0").write_text("41500\n")
    (tmp_path / "zone1").write_text("67000\n")
    known = sustained.window_of(1.0, [0.002], [0])
    assert (known["temperature"], known["clock"]) == (67.0, 1.5e9)


def test_it_is_written_in_the_syntax_of_python_3_8() -> None:
    ast.parse(SCRIPT.read_text(), feature_version=(3, 8))
