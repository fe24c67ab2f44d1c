"""Asks a bundle's loader in a fresh process, which begins with the runtimes imported.

A bad model may end the process that runs it, and one process for each model that imports the
runtimes anew takes a second each.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Sequence

from edgebuild import runner

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["edgebuild.runner", "onnxruntime", "ai_edge_litert.interpreter"])


def exit_code(words: Sequence[str]) -> int | None:
    """What the loader ends with; what it has to say of trouble goes to stderr."""
    process = FORKS.Process(target=_answer, args=(list(words),))
    process.start()
    process.join()
    return process.exitcode


def _answer(words: Sequence[str]) -> None:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        code = runner.main(words)  # type: ignore[no-untyped-call]
    sys.exit(code)
