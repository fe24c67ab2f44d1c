"""Times every kernel of an ONNX model, where there is nothing but numpy and onnxruntime."""
# This file travels: it must run on Python 3.8 and with numpy 1, so no newer syntax here.

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# More than any cache holds: writing it leaves nothing of a model there.
FLUSH_BYTES = 96 * 2**20


def profile(
    path: str,
    settings: Mapping[str, str],
    inputs: Mapping[str, Any],
    threads: int,
    hot: int,
    cold: int,
    optimized: str = "",
) -> list[dict[str, Any]]:
    """Every kernel in order, with its seconds in each of the runs; settings are the processor's.

    One run before them warms the caches and is not counted. A second session, with weights that
    are not packed, tells the shapes that the first one has let go of.
    """
    runs = [False] * (hot + 1) + [True] * cold
    timed = _by_name(_entries(path, settings, inputs, threads, runs, optimized))
    plain = dict(settings)
    plain["session.disable_prepacking"] = "1"
    shapes = _by_name(_entries(path, plain, inputs, threads, [False], ""))
    return [
        _event(name, shapes.get(name, timed[name])[0], timed[name], hot, cold) for name in timed
    ]


def _by_name(entries: Sequence[Any]) -> dict[str, list[Any]]:
    """The events of each kernel, one run after the other."""
    found: dict[str, list[Any]] = {}
    for entry in entries:
        found.setdefault(entry["name"][: -len("_kernel_time")], []).append(entry)
    return found


def _event(name: str, shape: Any, entries: Sequence[Any], hot: int, cold: int) -> dict[str, Any]:
    # A kernel in the body of a loop runs several times a run.
    times = len(entries) // (hot + cold + 1)
    each = [float(entry["dur"]) * 1e-6 for entry in entries]
    runs = [sum(each[start : start + times]) for start in range(0, len(each), max(times, 1))]
    told = shape["args"]
    return {
        "name": name,
        "kernel": told["op_name"],
        "inputs": [_tensor(one) for one in told["input_type_shape"]],
        "outputs": [_tensor(one) for one in told["output_type_shape"]],
        "parameters": int(told["parameter_size"]),
        "hot": runs[1 : hot + 1],
        "cold": runs[hot + 1 :],
    }


def _tensor(described: Mapping[str, Any]) -> list[Any]:
    """Its type and dimensions; what is left out has neither."""
    for kind, dimensions in described.items():
        return [kind, dimensions]
    return ["", []]


def _entries(
    path: str,
    settings: Mapping[str, str],
    feed: Mapping[str, Any],
    threads: int,
    flushes: Sequence[bool],
    optimized: str,
) -> list[Any]:
    """The kernels' events, as the runtime's profile holds them: run after run."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as scratch:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(scratch, "profile")
        if optimized:
            options.optimized_model_filepath = optimized
        for key, value in settings.items():
            options.add_session_config_entry(key, value)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        waste = np.zeros(FLUSH_BYTES if any(flushes) else 1, np.uint8)
        for flush in flushes:
            if flush:
                waste += 1
            session.run(None, feed)
        with open(session.end_profiling()) as file:
            entries = json.load(file)
    return [
        entry
        for entry in entries
        if entry.get("cat") == "Node" and entry["name"].endswith("_kernel_time")
    ]


def _main(
    model: str,
    folder: str,
    names: str,
    settings: str,
    runner: str,
    threads: str,
    hot: str,
    cold: str,
) -> None:
    feed = {
        name: np.array(np.load(os.path.join(folder, f"input-{number}.npy"), mmap_mode="r")[:1])
        for number, name in enumerate(json.loads(names))
    }
    # The runner, which has come along, knows what this processor needs.
    needed = runpy.run_path(runner)["session_settings"](json.loads(settings))
    told = profile(model, needed, feed, int(threads), int(hot), int(cold))
    print(json.dumps(told))


if __name__ == "__main__":
    # Beside this file may lie another one that is called like the runtime.
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))
    _main(*sys.argv[1:])
