"""Runs a language model. Travels with bundles: needs Python 3.8, numpy and the model's runtime.

    python run.py bench --prompt 512 --new 128
    python run.py generate --ids 1,2,3 --new 32
    python run.py check
    python run.py prepack
    python run.py bandwidth

The runtime is onnxruntime for a model.onnx, ai-edge-litert for a model.tflite. Every command prints
one JSON object. Exit codes: 0 right, 1 `check` found another answer, 2 what cannot be used, 4 the
runtime is missing or too old; a reason in one line.
"""
# This file travels: it must run on Python 3.8 and with numpy 1, so no newer syntax here.

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# The graph, and the index with the hashes of its weights; or LiteRT's one file.
GRAPH, INDEX, LITE = "model.onnx", "weights.json", "model.tflite"
# What says how a bundle was built.
MANIFEST = "language_model.json"
# What the model answered where it was built.
GOLDEN = "golden.json"
# Where weights lie as this machine's kernels want them, and what says for which machine that is.
PREPACKED, STAMP = "prepacked", "made-for.txt"
CONTEXT_KEY = "edgebuild.context"
# Tokens of a prompt that are run at once: more would need more memory and gain little.
CHUNK = 128
# Every vocabulary has more tokens than this; which ones are read takes no other time.
COMMON = 64
# What is added to the scores of places that a token must not see.
UNSEEN = np.float32(-1e9)
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


class ContextReader:
    """What has read some tokens of a context, and remembers them."""

    context = length = 0

    def forget(self) -> None:
        """Begins anew."""
        self.length = 0

    def refuse_more(self, count: int) -> None:
        """No more tokens than there is room for.

        Raises:
            ValueError: these are.
        """
        if self.length + count > self.context:
            total = self.length + count
            raise ValueError(f"{total} tokens: the model was built for {self.context}")


class Decoder(ContextReader):
    """A graph with the keys and values of what it has read, in buffers as long as its context."""

    def __init__(self, graph: str, threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.graph = graph
        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )
        about = self._session.get_modelmeta().custom_metadata_map
        self.context = int(about[CONTEXT_KEY])
        self._gives_last = self._session.get_outputs()[0].shape[1] == 1
        self._buffers: dict[str, Any] = {}
        for one in self._session.get_inputs():
            if one.name.startswith("past_key_values."):
                batch_heads_length_head = (1, one.shape[1], self.context, one.shape[3])
                empty = np.zeros(batch_heads_length_head, TYPES[one.type])
                self._buffers[one.name] = onnxruntime.OrtValue.ortvalue_from_numpy(empty)

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits [tokens or 1, vocabulary] of what comes after the tokens; at once, or in chunks.

        Raises:
            ValueError: more tokens than there is room for.
        """
        self.refuse_more(len(tokens))
        found = [self._run(tokens[at : at + CHUNK]) for at in range(0, len(tokens), CHUNK)]
        return found[-1] if self._gives_last else np.concatenate(found)

    def _run(self, tokens: Sequence[int]) -> np.ndarray:
        self.length += len(tokens)
        binding = self._session.io_binding()
        ids = np.asarray(tokens, np.int64)[None]
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", np.ones((1, self.length), np.int64))
        for name, buffer in self._buffers.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), buffer)
        binding.bind_output("logits")
        self._session.run_with_iobinding(binding)
        logits: np.ndarray = binding.get_outputs()[-1].numpy()[0]
        return logits


class LiteDecoder(ContextReader):
    """The same of a .tflite as litert-torch exports it, which has two signatures.

    `prefill_N` reads N tokens and gives no logits, `decode` reads one and gives them; both take the
    keys and values, and give them back with those of what they have read.
    """

    def __init__(self, graph: str, threads: int = 0) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.graph = graph
        interpreter = Interpreter(model_path=graph, num_threads=threads or os.cpu_count())
        names = interpreter.get_signature_list()
        (prefill,) = [name for name in names if name.startswith("prefill_")]
        self._prefill = interpreter.get_signature_runner(prefill)
        self._decode = interpreter.get_signature_runner("decode")
        self.chunk = int(self._prefill.get_input_details()["tokens"]["shape"][1])
        inputs = self._decode.get_input_details()
        self.context = int(inputs["mask"]["shape"][-1])
        self._cache = {
            name: np.zeros(about["shape"], about["dtype"])
            for name, about in inputs.items()
            if name.startswith("kv_cache_")
        }
        # The first run repacks the weights, which is part of loading them.
        with hushed():
            self.read([0])
        self.forget()

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits [1, vocabulary] of what comes after the tokens.

        Raises:
            ValueError: more tokens than there is room for.
        """
        self.refuse_more(len(tokens))
        self.prefill(tokens[:-1])
        logits: np.ndarray = self._run(self._decode, tokens[-1:], 1)["logits"][0]
        return logits

    def prefill(self, tokens: Sequence[int]) -> None:
        """Reads tokens without asking what comes after them."""
        for at in range(0, len(tokens), self.chunk):
            some = tokens[at : at + self.chunk]
            if self.length + self.chunk <= self.context:
                # What is read beyond the tokens is overwritten before anything looks at it.
                self._run(self._prefill, some, self.chunk)
                continue
            # A whole chunk would be written in another place: the runtime moves it back to fit.
            for token in some:
                self._run(self._decode, [token], 1)

    def _run(self, signature: Any, tokens: Sequence[int], size: int) -> dict[str, np.ndarray]:
        ids = np.zeros((1, size), np.int32)
        ids[0, : len(tokens)] = tokens
        places = np.arange(self.length, self.length + size, dtype=np.int32)
        is_seen = np.arange(self.context) <= places[:, None]
        mask = np.where(is_seen, np.float32(0), UNSEEN)[None, None]
        found: dict[str, np.ndarray] = signature(
            tokens=ids, input_pos=places, mask=mask, **self._cache
        )
        self._cache = {name: found[name] for name in self._cache}
        self.length += len(tokens)
        return found


@contextmanager
def hushed() -> Iterator[None]:
    """Turns away what C++ code says on stderr when all is well."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def open_decoder(folder: str, threads: int = 0) -> Decoder | LiteDecoder:
    """What runs a bundle.

    Raises:
        ImportError: its runtime is missing, or so old that it computes something else.
    """
    lite = os.path.join(folder, LITE)
    if not os.path.exists(lite):
        return Decoder(graph_of(folder), threads)
    refuse_old_runtime(folder)
    return LiteDecoder(lite, threads)


def refuse_old_runtime(folder: str) -> None:
    """Old releases of LiteRT compute something else, and say nothing."""
    from importlib.metadata import version

    with open(os.path.join(folder, MANIFEST), encoding="utf-8") as file:
        oldest = json.load(file)["minimum_runtime"]
    for package, needed in oldest.items():
        found = version(package)
        if numbers_in(found) < numbers_in(needed):
            raise ImportError(
                f"{package} {found} is not known to run this rightly, {needed} is", name=package
            )


def numbers_in(release: str) -> tuple[int, ...]:
    """(2, 14, 0) for "2.14.0"."""
    return tuple(int(number) for number in re.findall(r"\d+", release))


def measured(decoder: Any, prompts: Sequence[int], new: int, repeats: int) -> dict[str, Any]:
    """Rates as llama-bench gives them, one row for each test, and times to a first token."""
    rows, first = [], []
    chance = np.random.default_rng(0)
    for prompt in prompts:
        tokens = chance.integers(1, COMMON, prompt).tolist()
        taken = []
        for _ in range(repeats + 1):
            decoder.forget()
            began = time.perf_counter_ns()
            decoder.read(tokens)
            taken.append(time.perf_counter_ns() - began)
        # The first one warms caches up.
        rows.append(row(f"pp{prompt}", prompt, 0, taken[1:]))
        first += [each / 1e9 for each in taken[1:]]
    decoder.forget()
    decoder.read(chance.integers(1, COMMON, prompts[0]).tolist())
    steps = []
    for _ in range(min(new * repeats, decoder.context - decoder.length)):
        began = time.perf_counter_ns()
        decoder.read([7])
        steps.append(time.perf_counter_ns() - began)
    runs = [sum(steps[at : at + new]) for at in range(0, len(steps) - new + 1, new)]
    rows.append(row(f"tg{new}", 0, new, runs or [sum(steps)]))
    quarter = max(1, len(steps) // 4)
    return {
        "rows": rows,
        "first_token_p50": statistics.median(first),
        "first_token_p95": float(np.quantile(first, 0.95)),
        "decode_first": rate(quarter, sum(steps[:quarter])),
        "decode_sustained": rate(quarter, sum(steps[-quarter:])),
    }


def row(test: str, prompt: int, new: int, nanoseconds: Sequence[int]) -> dict[str, Any]:
    rates = [rate(prompt + new, each) for each in nanoseconds]
    return {
        "test": test,
        "n_prompt": prompt,
        "n_gen": new,
        "avg_ns": statistics.mean(nanoseconds),
        "stddev_ns": spread(nanoseconds),
        "avg_ts": statistics.mean(rates),
        "stddev_ts": spread(rates),
        "samples_ns": nanoseconds,
        "samples_ts": rates,
    }


def rate(tokens: int, nanoseconds: int) -> float:
    return tokens / nanoseconds * 1e9


def spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def memory() -> dict[str, int]:
    """Bytes by kind from /proc/self/status; zeros where there is none."""
    found = {"VmHWM": 0, "RssAnon": 0, "RssFile": 0}
    if os.path.exists("/proc/self/status"):
        with open("/proc/self/status") as file:
            for line in file:
                key = line.split(":")[0]
                if key in found:
                    found[key] = int(line.split()[1]) * 1024
    return found


def bandwidth(threads: int, seconds: float = 1.0, size: int = 2**28) -> float:
    """Bytes a second that threads read together here: the best of many passes over an array."""
    parts = np.array_split(np.ones(size // 8, np.float64), threads)
    best, ends = 0.0, time.perf_counter() + seconds
    with ThreadPoolExecutor(threads) as pool:
        while time.perf_counter() < ends:
            began = time.perf_counter()
            # numpy lets go of Python's lock while it sums.
            list(pool.map(np.sum, parts))
            best = max(best, size / (time.perf_counter() - began))
    return best


def prepack(folder: str) -> None:
    """Saves the graph with its weights as this processor's kernels want them, to be mapped.

    They are then clean pages of a file, and no memory of the process's own.
    """
    if os.path.exists(os.path.join(folder, LITE)):
        raise ValueError(f"{LITE} is not prepacked: LiteRT repacks its weights as it loads them")
    import onnxruntime

    place = os.path.join(folder, PREPACKED)
    os.makedirs(place, exist_ok=True)
    stamp = os.path.join(place, STAMP)
    if os.path.exists(stamp):
        os.remove(stamp)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = os.path.join(place, GRAPH)
    for key, value in (
        ("session.optimized_model_external_initializers_file_name", "weights.data"),
        ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(key, value)
    onnxruntime.InferenceSession(
        os.path.join(folder, GRAPH), options, providers=["CPUExecutionProvider"]
    )
    with open(stamp, "w") as file:
        file.write(packed_for(folder))


def packed_for(folder: str) -> str:
    """What prepacked weights hold for: a model, a release of the runtime, a kind of processor."""
    import onnxruntime

    kind = [onnxruntime.__version__, platform.machine()]
    for name in (GRAPH, INDEX):
        with open(os.path.join(folder, name), "rb") as file:
            kind.append(hashlib.sha256(file.read()).hexdigest())
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            # Kernels are chosen by the processor's features.
            features = {line for line in file if line.startswith(("flags", "Features"))}
        kind += sorted(" ".join(sorted(line.split(":", 1)[1].split())) for line in features)
    return "\n".join(kind)


def graph_of(folder: str) -> str:
    """The graph to run: the prepacked one where it was made for this machine."""
    stamp = os.path.join(folder, PREPACKED, STAMP)
    if os.path.exists(stamp):
        with open(stamp) as file:
            if file.read() == packed_for(folder):
                return os.path.join(folder, PREPACKED, GRAPH)
    return os.path.join(folder, GRAPH)


def continued(decoder: Any, tokens: Sequence[int], new: int) -> list[int]:
    """The tokens that a prompt goes on with, each the likeliest."""
    logits, found = decoder.read(tokens), []
    for _ in range(new):
        found.append(int(logits[-1].argmax()))
        logits = decoder.read(found[-1:])
    return found


def check(folder: str, threads: int) -> dict[str, Any]:
    """Whether the model still answers as it did where it was built.

    It is given its old answer token by token: one that is as likely as another may change places.

    Raises:
        ValueError: no answer was written down.
    """
    path = os.path.join(folder, GOLDEN)
    if not os.path.exists(path):
        raise ValueError(f"there is no {GOLDEN}: no answer was written down when this was built")
    with open(path, encoding="utf-8") as file:
        golden = json.load(file)
    decoder = open_decoder(folder, threads)
    tokens, worst = golden["prompt"], 0.0
    for step in golden["steps"]:
        logits = decoder.read(tokens)[-1].astype(np.float64)
        wanted = np.asarray(step["logits"])
        error = np.abs(logits[step["tokens"]] - wanted).max() / max(np.ptp(wanted), 1e-9)
        worst = max(worst, float(error) if np.isfinite(error) else float("inf"))
        tokens = [step["next"]]
    module = sys.modules["ai_edge_litert" if isinstance(decoder, LiteDecoder) else "onnxruntime"]
    return {
        "ok": worst <= golden["limit"],
        "relative_error": worst,
        "limit": golden["limit"],
        "runtime": f"{module.__name__} {getattr(module, '__version__', '')}".strip(),
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default=os.path.dirname(os.path.abspath(__file__)))
    parser.add_argument("--threads", type=int, default=0)
    commands = parser.add_subparsers(dest="command", required=True)
    bench = commands.add_parser("bench")
    bench.add_argument("--prompt", type=int, nargs="+", default=[128])
    bench.add_argument("--new", type=int, default=64)
    bench.add_argument("--repeats", type=int, default=5)
    generate = commands.add_parser("generate")
    generate.add_argument("--ids", required=True, help="tokens, with commas between")
    generate.add_argument("--new", type=int, default=32)
    commands.add_parser("check")
    commands.add_parser("prepack")
    commands.add_parser("bandwidth")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> dict[str, Any]:
    asked = parse(arguments)
    if asked.command == "prepack":
        prepack(asked.folder)
        return {"prepacked": os.path.join(asked.folder, PREPACKED)}
    if asked.command == "bandwidth":
        return {"bandwidth": bandwidth(asked.threads or os.cpu_count() or 1)}
    if asked.command == "check":
        return check(asked.folder, asked.threads)
    before, began = memory(), time.perf_counter()
    decoder = open_decoder(asked.folder, asked.threads)
    load = time.perf_counter() - began
    if asked.command == "generate":
        ids = [int(each) for each in asked.ids.split(",")]
        return {"ids": continued(decoder, ids, asked.new)}
    found = measured(decoder, asked.prompt, asked.new, asked.repeats)
    held = memory()
    return dict(
        found,
        load_seconds=load,
        peak=held["VmHWM"],
        anonymous=held["RssAnon"],
        mapped=held["RssFile"],
        anonymous_before=before["RssAnon"],
        threads=asked.threads,
        prepacked=PREPACKED in decoder.graph,
        machine=platform.machine(),
    )


if __name__ == "__main__":
    try:
        answer = main(sys.argv[1:])
        print(json.dumps(answer))
        sys.exit(0 if answer.get("ok", True) else 1)
    except ImportError as missing:
        is_lite = (missing.name or "").startswith(("ai_edge_litert", "ai-edge-litert"))
        runtime = "ai-edge-litert" if is_lite else "onnxruntime"
        print(f"{missing}: pip install --upgrade {runtime} numpy", file=sys.stderr)
        sys.exit(4)
    except Exception as problem:
        print(str(problem).splitlines()[0], file=sys.stderr)
        sys.exit(2)
