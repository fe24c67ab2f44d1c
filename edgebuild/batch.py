"""Runs programs of Python one after the other, each in a process that begins with its imports.

    python batch.py JOBS.json

JOBS.json holds {"imports": [module, ...], "programs": [[script, argument, ...], ...]}. The imports
are made once, and every program runs in a fork of what made them: to start Python and a runtime
anew takes longer than most programs do. Prints a JSON list with the `returncode`, `stdout` and
`stderr` of each, in order; a program that fails does not stop the others.
"""
# This file travels: it must run on Python 3.8, so no newer syntax here.

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Any


def run(imports: Sequence[str], programs: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    for name in imports:
        try:
            importlib.import_module(name)
        except ImportError:
            # The program that needs it says so.
            continue
    return [_completed(program) for program in programs]


def _completed(program: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as complaint:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(complaint.fileno(), 2)
            os._exit(_ended(program))
        _, status = os.waitpid(child, 0)
        return {
            "returncode": _returncode(status),
            "stdout": _text(output),
            "stderr": _text(complaint),
        }


def _ended(program: Sequence[str]) -> int:
    """The exit code of a script, run as Python itself runs one."""
    script = program[0]
    sys.argv = list(program)
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = _code_of(end)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _code_of(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


def _returncode(status: int) -> int:
    """As subprocess has it: negative where a signal ended the program."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _text(file: Any) -> str:
    file.seek(0)
    text: str = file.read().decode("utf-8", "replace")
    return text


if __name__ == "__main__":
    # Beside this file may lie others that are called like what is imported.
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))
    with open(sys.argv[1]) as jobs:
        asked = json.load(jobs)
    print(json.dumps(run(asked["imports"], asked["programs"])))
