#!/usr/bin/env python3
"""Runs a bundle on a device that has nothing but numpy and the bundle's runtime.

    python run.py                        replay the golden inputs and compare the outputs
    python run.py predict IN.npy ...     run one input, save output-0.npy ... beside it
    python run.py bench                  latency, memory and load time in this fresh process
    python run.py outputs FOLDER OUT     run every sample of a folder of input-*.npy

The runtime is onnxruntime for .onnx files; ai-edge-litert, or tflite-runtime on old devices, for
.tflite files. Every command prints one JSON object. Exit codes: 0 right, 1 golden outputs differ,
4 the runtime is missing or cannot load the model.
"""
# This file travels: it must run on Python 3.8 and with numpy 1, so no newer syntax here.

import argparse
import datetime
import json
import os
import platform
import sys
import time

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
WARM_UP_RUNS = 10
WARM_UP_SECONDS = 0.5


class OnnxSession:
    """An ONNX model in onnxruntime on the CPU."""

    def __init__(self, path, artifact, threads):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        for key, value in artifact["settings"].items():
            options.add_session_config_entry(key, value)
        self.names = artifact["inputs"]
        self.outputs = artifact["outputs"]
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )

    def run(self, inputs):
        return self.session.run(self.outputs, dict(zip(self.names, inputs)))


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

    def run(self, inputs):
        for detail, array in zip(self.inputs, inputs):
            # The format has no int64 inputs; indices fit into the 32 bits that it has.
            self.interpreter.set_tensor(detail["index"], array.astype(detail["dtype"], copy=False))
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(detail["index"]) for detail in self.outputs]


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
    golden = artifact["golden"]
    inputs = arrays(os.path.join(folder, golden["folder"]), "input")
    expected = arrays(os.path.join(folder, golden["folder"]), "output")
    worst = 0.0
    for row in range(len(inputs[0])):
        actual = session.run([array[row : row + 1] for array in inputs])
        for wanted, got in zip(expected, actual):
            worst = max(worst, relative_error(wanted[row : row + 1], got))
    return {"relative_error": worst, "limit": golden["limit"], "ok": bool(worst <= golden["limit"])}


def relative_error(wanted, got):
    """The largest difference over the largest magnitude; infinite for NaN or another shape."""
    wanted, got = np.asarray(wanted, np.float64), np.asarray(got, np.float64)
    if wanted.shape != got.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(wanted - got).max() / max(np.abs(wanted).max(), 1e-12))


def outputs(session, source, destination):
    """Runs every sample of a folder one by one and saves the outputs joined along the batch."""
    inputs = arrays(source, "input")
    rows = [
        session.run([np.ascontiguousarray(array[row : row + 1]) for array in inputs])
        for row in range(len(inputs[0]))
    ]
    save(destination, [np.concatenate(column) for column in zip(*rows)])
    return {"samples": len(rows)}


def bench(path, artifact, threads, source, seconds, count):
    """Single-stream latency of one input after the other, at least `count` and `seconds`."""
    inputs = [np.array(array[:8]) for array in arrays(source, "input")]
    samples = [[array[row : row + 1] for array in inputs] for row in range(len(inputs[0]))]
    version = runtime_version(artifact["format"])
    reset_peak()
    baseline = memory()
    started = time.perf_counter()
    session = SESSIONS[artifact["format"]](path, artifact, threads)
    session.run(samples[0])
    load = time.perf_counter() - started
    warm_up(session, samples)
    latencies, wall, cpu = [], time.perf_counter(), time.process_time()
    while len(latencies) < count or time.perf_counter() - wall < seconds:
        sample = samples[len(latencies) % len(samples)]
        started = time.perf_counter()
        session.run(sample)
        latencies.append(time.perf_counter() - started)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
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
        "machine": machine(),
        "taken_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def warm_up(session, samples):
    """Fills caches and lets the clock rise before anything counts."""
    started, runs = time.perf_counter(), 0
    while runs < WARM_UP_RUNS or time.perf_counter() - started < WARM_UP_SECONDS:
        session.run(samples[runs % len(samples)])
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


def machine():
    """The processor's name, as well as this system knows it."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith(("model name", "Model")):
                    return line.split(":", 1)[1].strip()
    return platform.machine()


def arrays(folder, kind):
    """The arrays `kind-0.npy`, `kind-1.npy` ... of a folder, in order."""
    found = []
    while os.path.exists(os.path.join(folder, "%s-%d.npy" % (kind, len(found)))):
        path = os.path.join(folder, "%s-%d.npy" % (kind, len(found)))
        found.append(np.load(path, mmap_mode="r"))
    if not found:
        raise SystemExit("%s holds no %s-0.npy" % (folder, kind))
    return found


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
    benching = commands.add_parser("bench")
    benching.add_argument("--inputs", help="a folder of input-*.npy; the golden ones unless given")
    benching.add_argument("--seconds", type=float, default=5.0)
    benching.add_argument("--count", type=int, default=1024)
    whole = commands.add_parser("outputs")
    whole.add_argument("folder")
    whole.add_argument("out")
    return parser.parse_args(arguments)


def main(arguments):
    asked = parse(arguments)
    folder = os.path.dirname(os.path.abspath(asked.manifest))
    with open(asked.manifest) as file:
        manifest = json.load(file)
    artifact = manifest["artifact"]
    path = os.path.join(folder, artifact["file"])
    threads = min(asked.threads or manifest["threads"], os.cpu_count() or 1)
    try:
        if asked.command == "bench":
            source = asked.inputs or os.path.join(folder, artifact["golden"]["folder"])
            result = bench(path, artifact, threads, source, asked.seconds, asked.count)
            print(json.dumps(result))
            return 0
        session = SESSIONS[artifact["format"]](path, artifact, threads)
    except ImportError as error:
        print("the runtime is missing: %s. Install %s" % (error, needed(artifact)), file=sys.stderr)
        return 4
    except (RuntimeError, ValueError) as error:
        print("the runtime cannot load %s: %s" % (artifact["file"], error), file=sys.stderr)
        return 4
    if asked.command == "predict":
        save(os.path.dirname(os.path.abspath(asked.inputs[0])),
             session.run([np.load(name) for name in asked.inputs]))  # fmt: skip
        result = {"ok": True}
    elif asked.command == "outputs":
        result = outputs(session, asked.folder, asked.out)
    else:
        result = check(session, artifact, folder)
    print(json.dumps(dict(result, runtime=runtime_version(artifact["format"]))))
    return 0 if result.get("ok", True) else 1


def needed(artifact):
    """For example "onnxruntime >= 1.18 or ..."."""
    return " or ".join("%s >= %s" % pair for pair in sorted(artifact["minimum_runtime"].items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
