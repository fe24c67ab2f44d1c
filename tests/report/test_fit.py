"""What fits is shown with its speed, and what does not with the sum and the nearest that does."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from edgebuild.inputs.target_file import load_target
from edgebuild.llm.config import load_decoder
from edgebuild.llm.plan import plan
from edgebuild.report.fit import as_json, show_converted, show_fit
from edgebuild.vocabulary.fit import Fit

CONFIGS = Path(__file__).parents[1] / "llm" / "configs"


def planned(name: str) -> Fit:
    return plan(load_decoder(CONFIGS / f"{name}.json"), load_target("phone-12gb"), 4096)


def shown(fit: Fit, width: int = 80) -> str:
    text = io.StringIO()
    show_fit(Console(file=text, width=width), fit)
    return text.getvalue()


def test_every_precision_is_shown_whole_in_eighty_columns() -> None:
    for name in ("llama-3-8b", "deepseek-r1", "mixture-1.8t"):
        fit = planned(name)
        text = shown(fit)
        assert "…" not in text
        for option in fit.options:
            assert option.precision in text


def test_what_fits_is_marked_and_told_with_its_bounds() -> None:
    text = " ".join(shown(planned("llama-3-8b"), 400).split())
    assert "→ int4-g128+int8-head" in text
    assert "about 8.18 tokens/s, 4.5 when it is hot, never more than 16.4" in text
    assert "263 mJ a token at least" in text


def test_what_does_not_fit_is_told_with_the_sum() -> None:
    text = shown(planned("deepseek-r1"), 400)
    assert "does not fit: even int2-g32-asym needs 378 GB weights + " in text
    assert "nearest with a model distilled from it: DeepSeek-R1-Distill" in text


def test_json_has_the_sums() -> None:
    fit = planned("llama-3-8b")
    found = as_json(fit)
    assert found["fits"] is True
    assert isinstance(found["options"], list)
    assert found["options"][0]["total"] == fit.options[0].needs.total


@pytest.mark.parametrize(
    ("read", "expected"),
    [(2_000_000_000, "read 2 GB in 4 s, 500 MB/s"), (0, "every hash is right")],
)
def test_a_conversion_is_told_with_its_rate(read: int, expected: str) -> None:
    text = io.StringIO()
    show_converted(Console(file=text, width=200), Path("out"), 10, read, 4.0)
    assert expected in text.getvalue()
