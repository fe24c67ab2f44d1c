"""Measures the rates of a model in onnxruntime-genai, in that peer's own environment.

python genai.py FOLDER
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgebuild.generate import Decoder, measured, memory

CONTEXT = 512
# Tokens of a prompt and of an answer that are timed, and how often.
PROMPT, NEW, REPEATS = 128, 64, 5


class Genai(Decoder):
    """A model that reads as our own loader's does, so that the same code times both."""

    def __init__(self, folder: Path) -> None:
        self.context, self.length = CONTEXT, 0
        self._package: Any = importlib.import_module("onnxruntime_genai")
        self._model = self._package.Model(str(folder))
        self.forget()

    def forget(self) -> None:
        search = self._package.GeneratorParams(self._model)
        search.set_search_options(max_length=CONTEXT, do_sample=False)
        self._generator = self._package.Generator(self._model, search)
        self.length = 0

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits [1, 1, vocabulary] of what comes after the tokens."""
        self._generator.append_tokens(np.asarray(tokens, np.int32))
        self.length += len(tokens)
        return np.asarray(self._generator.get_logits())


def bench(folder: Path) -> dict[str, object]:
    """As our own loader prints it."""
    # Held by a name: its memory is looked at while it is there.
    model = Genai(folder)
    found = measured(model, [PROMPT], NEW, REPEATS)
    held = memory()
    return {
        **{"rows": found["rows"], "peak": held["VmHWM"]},
        **{"anonymous": held["RssAnon"], "mapped": held["RssFile"]},
    }


if __name__ == "__main__":
    print(json.dumps(bench(Path(sys.argv[1]))))
