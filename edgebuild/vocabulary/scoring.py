"""Asks a user's score function, and tells what goes wrong in it as the user's, with the place."""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Mapping
from typing import Any

from edgebuild.vocabulary.errors import InvalidWorkload, told
from edgebuild.vocabulary.workload import Score


def scored(score: Score, outputs: Any, labels: Any) -> float:
    """The score of a split's outputs.

    Raises:
        InvalidWorkload: the score function fails, or gives no finite number.
    """
    try:
        value = score(outputs, labels)
    except Exception as error:
        raise InvalidWorkload(
            f"the score function failed{_place(error)}: {told(error)} "
            f"(outputs: {_described(outputs)}; labels: {_described(labels)})"
        ) from error
    try:
        found = float(value)
    except Exception as error:
        raise InvalidWorkload(
            f"the score function{_defined(score)} returned {_described(value)}, "
            f"which is no number: {told(error)}"
        ) from error
    if not math.isfinite(found):
        raise InvalidWorkload(
            f"the score function{_defined(score)} returned {found}: it must be a number"
        )
    return found


def _place(error: BaseException) -> str:
    """The last line of the file that the score stands in: libraries fail for what they were given.

    Empty where no line of Python was reached.
    """
    _, *frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    return f" at {_near(own[-1].filename)}:{own[-1].lineno}" if own else ""


def _defined(score: Score) -> str:
    code = getattr(score, "__code__", None)
    return f" at {_near(code.co_filename)}:{code.co_firstlineno}" if code else ""


def _near(file: str) -> str:
    """The path as one would type it here."""
    here = os.path.join(os.getcwd(), "")
    return file[len(here) :] if file.startswith(here) else file


def _described(value: Any) -> str:
    """Kinds, names and shapes: most scores that fail had expected others."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key!r}: {_described(one)}" for key, one in value.items())
        return f"a dict of {{{inner}}}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of ({', '.join(map(_described, value))})"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} {tuple(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"
