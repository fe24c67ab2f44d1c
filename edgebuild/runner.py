#!/usr/bin/env python3
"""Runs a bundle on a device that has nothing but numpy and the bundle's runtime.

    python run.py                        replay the golden inputs and compare the outputs
    python run.py predict IN.npy ...     run these inputs; --out FOLDER saves output-0.npy ...
    python run.py bench                  latency, memory and load time in this fresh process
    python run.py outputs FOLDER OUT     run every sample of a folder of input-*.npy

The runtime is onnxruntime for .onnx files; ai-edge-litert, or tflite-runtime on old devices, for
.tflite files. Every command prints one JSON object. Exit codes: 0 right, 1 golden outputs differ,
2 an input or file that cannot be used, 4 the runtime is missing or fails; a reason in one line.
"""
# This file travels: it must run on Python 3.8 and with numpy 1, so no newer syntax here.

import argparse
import datetime
import itertools
import json
import os
import platform
import re
import sys
import time

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
WARM_UP = (10, 0.3)  # runs and seconds at least
# Raw samples stay in the manifest: a model of microseconds must not fill it.
MOST_SAMPLES = 10000
# A model of seconds must not take an hour: fewer runs then, and so wider bounds.
MOST_SECONDS = 120.0
WITHOUT_VNNI = "session.x64quantprecision"


class Trouble(Exception):
    """Ends the program with one line and an exit code."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


class OnnxSession:
    """An ONNX model in onnxruntime on the CPU."""

    def __init__(self, path, artifact, threads):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        for key, value in session_settings(artifact["settings"]).items():
            options.add_session_config_entry(key, value)
        self.names = artifact["inputs"]
        self.outputs = artifact["outputs"]
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        taken = {taken.name: taken for taken in self.session.get_inputs()}
        self.expected = [self.shape_and_type(taken[name]) for name in self.names]

    def shape_and_type(self, taken):
        name = taken.type[len("tensor(") : -1]
        return tuple(taken.shape), np.dtype(ONNX_TYPES.get(name, name))

    def run(self, inputs):
        return self.session.run(self.outputs, dict(zip(self.names, inputs)))


def session_settings(settings, cpuinfo="/proc/cpuinfo"):
    """The settings that this processor needs.

    What keeps sums in sixteen bits from saturating makes integers twice as slow, and processors
    with VNNI add in thirty-two bits.
    """
    flags = []
    if os.path.exists(cpuinfo):
        with open(cpuinfo) as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    has_vnni = "avx512_vnni" in flags or "avx_vnni" in flags
    return {k: v for k, v in settings.items() if not (has_vnni and k == WITHOUT_VNNI)}


class TfliteSession:
    """A TFLite model in LiteRT, or in the older tflite-runtime, on the CPU with XNNPACK."""

    def __init__(self, path, artifact, threads):
        module = runtime_module("tflite")
        self.interpreter = module.Interpreter(model_path=path, num_threads=threads)
        self.interpreter.allocate_tensors()
        signature = self.interpreter.get_signature_runner()
        ins, outs = signature.get_input_details(), signature.get_output_details()
        self.inputs = [ins[name] for name in artifact["inputs"]]
        self.outputs = [outs[name] for name in artifact["outputs"]]
        self.expected = [
            (tuple(taken["shape"].tolist()), np.dtype(taken["dtype"])) for taken in self.inputs
        ]

    def run(self, inputs):
        for detail, array in zip(self.inputs, inputs):
            # The format has no int64 inputs; indices fit into the 32 bits that it has.
            self.interpreter.set_tensor(detail["index"], array.astype(detail["dtype"], copy=False))
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(detail["index"]) for detail in self.outputs]


# What onnxruntime calls differently from numpy.
ONNX_TYPES = {"float": "float32", "double": "float64"}
SESSIONS = {"onnx": OnnxSession, "tflite": TfliteSession}


def runtime_module(form):
    """The runtime that this device has for a format."""
    if form == "onnx":
        import onnxruntime

        return onnxruntime
    try:
        from ai_edge_litert import interpreter
    except ImportError:
        import tflite_runtime.interpreter as interpreter
    return interpreter


def runtime_version(form):
    """For example "onnxruntime 1.32.0"."""
    name = runtime_module(form).__name__.split(".")[0]
    package = {"ai_edge_litert": "ai-edge-litert", "tflite_runtime": "tflite-runtime"}.get(
        name, name
    )
    try:
        from importlib.metadata import version

        return package + " " + version(package)
    except Exception:
        return package + " of unknown version"


def check(session, artifact, folder):
    """Replays the golden inputs; the worst relative error over outputs, and the limit."""
    golden = golden_of(artifact)
    expected = arrays(os.path.join(folder, golden["folder"]), "output")
    worst = 0.0
    for row, given in enumerate(rows_of(arrays(os.path.join(folder, golden["folder"]), "input"))):
        actual = session.run(fitted(session, given))
        if len(actual) != len(expected):
            raise Trouble(2, "%d golden outputs, %d of the model" % (len(expected), len(actual)))
        for wanted, got in zip(expected, actual):
            worst = max(worst, relative_error(wanted[row : row + 1], got))
    return {"relative_error": worst, "limit": golden["limit"], "ok": bool(worst <= golden["limit"])}


def relative_error(wanted, got):
    """The largest difference over the largest magnitude; infinite for NaN or another shape."""
    wanted, got = np.asarray(wanted, np.float64), np.asarray(got, np.float64)
    if wanted.shape != got.shape or not (np.isfinite(wanted).all() and np.isfinite(got).all()):
        return float("inf")
    return float(np.abs(wanted - got).max() / max(np.abs(wanted).max(), 1e-12))


def outputs(session, inputs, destination):
    """Runs one sample after the other; saves and returns the outputs, joined along the batch."""
    rows = [session.run(fitted(session, row)) for row in rows_of(inputs)]
    found = rows[0] if len(rows) == 1 else [np.concatenate(column) for column in zip(*rows)]
    if destination:
        save(destination, found)
    return found


def bench(path, artifact, threads, version, source, seconds, count, fill=False, warm=WARM_UP):
    """Single-stream latency of one input after the other, at least `count` and `seconds`.

    A fast model has its samples sooner; with `fill` it runs on, so that a power meter can follow.
    """
    given = list(itertools.islice(rows_of(arrays(source, "input")), 8))
    cores = pinned(threads)
    reset_peak()
    baseline = memory()
    started = time.perf_counter()
    session = opened(path, artifact, threads)
    given = [fitted(session, row) for row in given]
    session.run(given[0])
    load = time.perf_counter() - started
    warm_up(session, given, *warm)
    latencies, began = [], time.time()
    wall, cpu = time.perf_counter(), time.process_time()
    while goes_on(len(latencies), time.perf_counter() - wall, count, seconds):
        sample = given[len(latencies) % len(given)]
        started = time.perf_counter()
        session.run(sample)
        latencies.append(time.perf_counter() - started)
    inferences = len(latencies)
    while fill and time.perf_counter() - wall < seconds:
        session.run(given[inferences % len(given)])
        inferences += 1
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    ended = time.time()
    after = memory()
    return {
        "latencies": latencies,
        "load": load,
        "peak_memory": max(after["VmHWM"] - baseline["VmRSS"], 0),
        "peak_anonymous": max(after["RssAnon"] - baseline["RssAnon"], 0),
        "baseline_memory": baseline["VmRSS"],
        "cpu_share": cpu / wall,
        "threads": threads,
        "runtime": version,
        **circumstances(cores),
        # When to look at a power meter, and what was done meanwhile.
        "began_at": began,
        "ended_at": ended,
        "inferences": inferences,
    }


def circumstances(cores):
    """What a measurement depends on beside the model."""
    return {
        "machine": machine(),
        "taken_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cores": cores,
        "governor": text_of(CLOCKS % (min(cores or [0]), "scaling_governor")),
    }


def pinned(threads):
    """Keeps to as many cores, the fastest ones; the first, which serves interrupts, last of all."""
    if not hasattr(os, "sched_setaffinity"):
        return []
    cores = os.sched_getaffinity(0)
    by_speed = sorted(cores, key=lambda c: (number_of(CLOCKS % (c, "cpuinfo_max_freq")) or 0, c))
    try:
        os.sched_setaffinity(0, by_speed[-threads:])
    except OSError:
        return sorted(cores)
    return sorted(by_speed[-threads:])


CLOCKS = "/sys/devices/system/cpu/cpu%d/cpufreq/%s"


def text_of(path):
    """A small file's text; empty where there is none, or it may not be read."""
    try:
        with open(path) as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""


def number_of(path):
    text = text_of(path)
    return float(text) if re.match(r"-?\d+$", text) else None


def goes_on(done, elapsed, count, seconds):
    """Whether a measurement needs more runs: few of a fast model, or in time of a slow one."""
    if done >= MOST_SAMPLES or (done >= 1 and elapsed >= max(seconds, MOST_SECONDS)):
        return False
    return done < count or elapsed < seconds


def summarized(result):
    """The result with a few percentiles in place of the raw latencies."""
    ordered = sorted(result["latencies"])
    at = {"p%d" % share: ordered[len(ordered) * share // 100] for share in (50, 90, 99)}
    return dict(result, latencies=dict(at, runs=len(ordered)))


def summary_of(array):
    """Shape and first values of an output, for a person to look at."""
    return {"shape": list(array.shape), "first": np.asarray(array).reshape(-1)[:10].tolist()}


def warm_up(session, given, count, seconds):
    """Fills caches and lets the clock rise before anything counts."""
    started, runs = time.perf_counter(), 0
    while runs < count or time.perf_counter() - started < seconds:
        session.run(given[runs % len(given)])
        runs += 1


def reset_peak():
    """Lets VmHWM start anew (proc(5), clear_refs); without the right to, it covers the imports."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def memory():
    """Bytes by kind from /proc/self/status; zeros where there is none."""
    found = {"VmHWM": 0, "VmRSS": 0, "RssAnon": 0, "RssFile": 0}
    if os.path.exists("/proc/self/status"):
        with open("/proc/self/status") as file:
            for line in file:
                key = line.split(":")[0]
                if key in found:
                    found[key] = int(line.split()[1]) * 1024
    return found


def machine() -> str:
    """The processor's name, as well as this system knows it."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith(("model name", "Model")):
                    return line.split(":", 1)[1].strip()
    return platform.machine()


def rows_of(inputs):
    """One sample after the other, each input with batch 1."""
    counts = {array.shape[:1] for array in inputs}
    if len(counts) != 1 or counts & {(), (0,)}:
        raise Trouble(2, "the inputs hold no samples, or not as many each")
    for row in range(len(inputs[0])):
        yield [np.array(array[row : row + 1]) for array in inputs]


def fitted(session, inputs):
    """The inputs in the model's number types, once their count, kinds and shapes are right."""
    if len(inputs) != len(session.expected):
        raise Trouble(2, "the model takes %d inputs, not %d" % (len(session.expected), len(inputs)))
    for number, (array, (shape, dtype)) in enumerate(zip(inputs, session.expected)):
        if array.shape != shape or array.dtype.kind != dtype.kind:
            asked = (number, dtype, shape, array.dtype, array.shape)
            raise Trouble(2, "input %d of the model is %s %s, not %s %s" % asked)
    return [array.astype(kind, copy=False) for array, (_, kind) in zip(inputs, session.expected)]


def arrays(folder, kind):
    """The arrays `kind-0.npy`, `kind-1.npy` ... of a folder, in order."""
    found = []
    while os.path.exists(os.path.join(folder, "%s-%d.npy" % (kind, len(found)))):
        path = os.path.join(folder, "%s-%d.npy" % (kind, len(found)))
        found.append(loaded(path, "r"))
    if not found or min(len(array) for array in found) == 0:
        raise Trouble(2, "%s holds no sample in %s-0.npy" % (folder, kind))
    return found


def loaded(path, mode=None):
    try:
        return np.load(path, mmap_mode=mode)
    except (OSError, ValueError, EOFError) as error:
        raise Trouble(2, "cannot read %s: %s" % (path, first_line(error))) from None


def save(folder, found):
    os.makedirs(folder, exist_ok=True)
    for index, array in enumerate(found):
        np.save(os.path.join(folder, "output-%d.npy" % index), array)


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", default=os.path.join(HERE, "manifest.json"))
    parser.add_argument("--threads", type=int, help="as in the manifest unless given")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("check")
    predicting = commands.add_parser("predict")
    predicting.add_argument("inputs", nargs="+")
    predicting.add_argument("--out", help="a folder to save the outputs in")
    benching = commands.add_parser("bench")
    benching.add_argument("--inputs", help="a folder of input-*.npy; the golden ones unless given")
    benching.add_argument("--seconds", type=float, default=5.0)
    benching.add_argument("--count", type=int, default=1024)
    benching.add_argument("--warm-up", type=float, default=WARM_UP[1], help="seconds before that")
    benching.add_argument("--fill", action="store_true", help="run on until --seconds are over")
    benching.add_argument("--raw", action="store_true", help="print every latency")
    whole = commands.add_parser("outputs")
    whole.add_argument("folder")
    whole.add_argument("out")
    return parser.parse_args(arguments)


def main(arguments):
    try:
        return answer(parse(arguments))
    except Trouble as trouble:
        print(trouble, file=sys.stderr)
        return trouble.code


def answer(asked):
    folder = os.path.dirname(os.path.abspath(asked.manifest))
    manifest = read_manifest(asked.manifest)
    artifact = manifest["artifact"]
    path = os.path.join(folder, artifact["file"])
    threads = min(asked.threads or manifest["threads"], os.cpu_count() or 1)
    version = installed(artifact)
    if asked.command == "bench":
        source = asked.inputs or os.path.join(folder, golden_of(artifact)["folder"])
        effort = (asked.seconds, asked.count, asked.fill, (WARM_UP[0], asked.warm_up))
        result = bench(path, artifact, threads, version, source, *effort)
        print(json.dumps(result if asked.raw else summarized(result)))
        return 0
    session = opened(path, artifact, threads)
    if asked.command == "predict":
        found = outputs(session, [loaded(name) for name in asked.inputs], asked.out)
        result = {"outputs": [summary_of(array) for array in found]}
    elif asked.command == "outputs":
        given = arrays(asked.folder, "input")
        outputs(session, given, asked.out)
        result = {"samples": len(given[0])}
    else:
        result = check(session, artifact, folder)
    print(json.dumps(dict(result, runtime=version)))
    return 0 if result.get("ok", True) else 1


def read_manifest(path):
    try:
        with open(path) as file:
            manifest = json.load(file)
    except (OSError, ValueError) as error:
        raise Trouble(2, "cannot read the manifest %s: %s" % (path, first_line(error))) from None
    if not isinstance(manifest, dict) or "artifact" not in manifest or "threads" not in manifest:
        raise Trouble(2, "%s is no manifest of a bundle" % path)
    return manifest


def golden_of(artifact):
    if "golden" not in artifact:
        raise Trouble(2, "the manifest names no golden samples")
    return artifact["golden"]


def installed(artifact):
    """The version of the runtime, which is imported by this."""
    try:
        version = runtime_version(artifact["format"])
    except ImportError as error:
        reason = (first_line(error), needed(artifact))
        raise Trouble(4, "the runtime is missing: %s. Install %s" % reason) from None
    package, _, release = version.partition(" ")
    oldest = artifact["minimum_runtime"].get(package)
    if artifact["minimum_runtime"] and (oldest is None or numbers_in(release) < numbers_in(oldest)):
        # An older one may compute something else, and say nothing.
        reason = (version, needed(artifact))
        raise Trouble(4, "%s is not known to run this rightly. Install %s" % reason)
    return version


def numbers_in(release):
    """(2, 14, 0) for "2.14.0"; releases of unknown number count as new enough."""
    found = re.findall(r"\d+", release)
    return tuple(int(number) for number in found) if found else (float("inf"),)


def opened(path, artifact, threads):
    """A session with the model; whatever a runtime raises there becomes one line."""
    if not os.path.exists(path):
        raise Trouble(4, "there is no model file %s" % path)
    try:
        return SESSIONS[artifact["format"]](path, artifact, threads)
    except Exception as error:
        # Runtimes raise types of their own, some of which derive from Exception alone.
        reason = (artifact["file"], first_line(error), needed(artifact))
        raise Trouble(4, "the runtime cannot load %s: %s. It needs %s" % reason) from None


def first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def needed(artifact):
    """For example "onnxruntime >= 1.18 or ..."."""
    return " or ".join("%s >= %s" % pair for pair in sorted(artifact["minimum_runtime"].items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
