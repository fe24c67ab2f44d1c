"""A batch runs programs as Python itself would, and tells how each has ended."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgebuild import batch


def ran(folder: Path, *programs: str, imports: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """How programs of these texts end, each with the argument "given"."""
    scripts = [folder / f"program-{number}.py" for number in range(len(programs))]
    for script, text in zip(scripts, programs, strict=True):
        script.write_text(text)
    jobs = folder / "jobs.json"
    asked = [[str(script), "given"] for script in scripts]
    jobs.write_text(json.dumps({"imports": imports, "programs": asked}))
    done = subprocess.run(
        [sys.executable, str(batch.__file__), str(jobs)], capture_output=True, text=True, check=True
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_a_program_has_its_arguments_and_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("WORD = 'found'\n")
    text = "import sys, beside\nif __name__ == '__main__':\n    print(sys.argv[1:], beside.WORD)\n"
    (done,) = ran(tmp_path, text)
    assert done == {"returncode": 0, "stdout": "['given'] found\n", "stderr": ""}


def test_what_ends_badly_says_how_and_does_not_stop_the_others(tmp_path: Path) -> None:
    found = ran(
        tmp_path,
        "raise LookupError('lost')",
        "import sys; sys.exit('said')",
        "import sys; sys.exit(3)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "print('reached')",
    )
    assert [one["returncode"] for one in found] == [1, 1, 3, -9, 0]
    assert found[0]["stderr"].endswith("LookupError: lost\n")
    assert found[1]["stderr"] == "said\n"
    assert found[4]["stdout"] == "reached\n"


def test_imports_are_made_before_and_one_that_is_missing_is_left_to_the_programs(
    tmp_path: Path,
) -> None:
    text = "import sys\nprint('decimal' in sys.modules)\n"
    (done,) = ran(tmp_path, text, imports=("no_such_module", "decimal"))
    assert done["stdout"] == "True\n"
