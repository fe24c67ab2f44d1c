"""A score function that fails is told as the user's own, with its line and what it was given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebuild.vocabulary.errors import InvalidWorkload
from edgebuild.vocabulary.scoring import scored

OUTPUTS = {"boxes": np.zeros((5, 4), np.float32), "scores": (np.zeros((5, 2), np.float32),)}
LABELS = np.zeros(5, np.int64)


def own_score(folder: Path, body: str) -> Callable[[Any, Any], float]:
    file = folder / "work.py"
    file.write_text(f"import json\n\ndef score(outputs, labels):\n    {body}\n")
    names: dict[str, Any] = {}
    exec(compile(file.read_text(), file, "exec"), names)
    found: Callable[[Any, Any], float] = names["score"]
    return found


def refusal(score: Callable[[Any, Any], Any]) -> str:
    with pytest.raises(InvalidWorkload) as caught:
        scored(score, OUTPUTS, LABELS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_line_and_the_shapes_are_named(tmp_path: Path) -> None:
    message = refusal(own_score(tmp_path, "return outputs[0].mean()"))
    assert message == (
        f"the score function failed at {tmp_path}/work.py:4: KeyError: 0 (outputs: a dict of "
        "{'boxes': float32 (5, 4), 'scores': a tuple of (float32 (5, 2))}; labels: int64 (5,))"
    )


def test_where_a_library_fails_the_users_own_line_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(own_score(tmp_path, 'return json.loads("no number")'))
    assert message.startswith("the score function failed at work.py:4: JSONDecodeError: ")


def test_a_score_that_is_no_python_has_no_line() -> None:
    assert refusal(max).startswith("the score function failed: TypeError: ")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return float('nan')", "work.py:3 returned nan: it must be a number"),
        ("return 'good'", "work.py:3 returned a str, which is no number: ValueError: "),
        ("return outputs['boxes']", "work.py:3 returned float32 (5, 4), which is no number"),
        ("pass", "work.py:3 returned None, which is no number"),
    ],
)
def test_what_is_no_finite_number_is_refused(body: str, said: str, tmp_path: Path) -> None:
    assert said in refusal(own_score(tmp_path, body))


def test_a_number_of_any_library_is_a_score(tmp_path: Path) -> None:
    assert scored(own_score(tmp_path, "return outputs['boxes'].mean()"), OUTPUTS, LABELS) == 0.0
