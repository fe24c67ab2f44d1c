"""A short answer that a packed model gave when it was built, and whether it still gives it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgebuild import generate
from edgebuild.bundles.verify import Replay, replayed
from edgebuild.generate import COMMON, GOLDEN, GRAPH, LITE, Decoder, LiteDecoder
from edgebuild.vocabulary.contracts import Device
from edgebuild.vocabulary.units import Seconds

# Tokens that are read first, and of the answer to them.
PROMPT, STEPS = 16, 8
# Logits that are kept of each step: the likeliest, and as many from all over the vocabulary.
KEPT = 8
# Of the spread of a step's logits. Other processors' kernels round four-bit layers by percents;
# a runtime that computes something else is off by the whole spread.
LIMIT = 0.1
DEADLINE = Seconds(3600.0)


def record(folder: Path, prompt: Sequence[int] | None = None) -> None:
    """Runs the model that is in a folder, and writes what it answers beside it.

    Without a prompt it reads common tokens: what they mean does not matter here.
    """
    is_lite = (folder / LITE).exists()
    decoder = LiteDecoder(str(folder / LITE)) if is_lite else Decoder(str(folder / GRAPH))
    some = list(prompt or range(1, COMMON))[: min(PROMPT, max(1, decoder.context - STEPS))]
    steps = list(_answered(decoder, some, min(STEPS, decoder.context - len(some))))
    golden = {"prompt": some, "steps": steps, "limit": LIMIT}
    (folder / GOLDEN).write_text(json.dumps(golden), encoding="utf-8")


def _answered(
    decoder: Decoder | LiteDecoder, prompt: Sequence[int], steps: int
) -> Iterator[dict[str, Any]]:
    tokens = list(prompt)
    for _ in range(steps):
        logits = decoder.read(tokens)[-1].astype(np.float64)
        spread = np.linspace(0, len(logits) - 1, KEPT).astype(int)
        kept = list(dict.fromkeys([*logits.argsort()[::-1][:KEPT].tolist(), *spread.tolist()]))
        tokens = [int(logits.argmax())]
        yield {"tokens": kept, "logits": logits[kept].tolist(), "next": tokens[0]}


def replay(folder: Path, device: Device) -> Replay | None:
    """Lets the model answer once more, on a device; None where no answer was written down.

    Raises:
        InvalidBundle: it answers something else.
        DeviceError: the runtime is missing or cannot load the model.
    """
    if not (folder / GOLDEN).is_file():
        return None
    # Our own loader, not the bundle's: what somebody else packed is data here, not code.
    loader = device.push(Path(generate.__file__))
    there = device.push(folder.absolute())
    done = device.run(["python", loader, "--folder", there, "check"], DEADLINE)
    return replayed(done, folder, device, "logits", " of their spread")
