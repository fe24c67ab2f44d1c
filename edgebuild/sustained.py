#!/usr/bin/env python3
"""Runs a bundle's model for minutes on end, and tells what is left of the speed once it is warm.

    python sustained.py MANIFEST SECONDS THREADS     (0 threads: as many as the manifest says)

It travels beside runner.py, and prints one JSON object.
"""
# This file travels: it must run on Python 3.8 and with numpy 1, so no newer syntax here.

import collections
import glob
import itertools
import json
import os
import sys
import time

import numpy as np
import runner

# A long run is told window by window, in seconds; its two ends are told apart.
WINDOW = 10.0
END = 60.0
THERMAL_ZONES = "/sys/class/thermal/thermal_zone*/temp"


def sustained(path, artifact, threads, version, source, seconds):
    """Runs one input after the other for so long: what is left of the speed once it is warm."""
    cores = runner.pinned(threads)
    session = runner.opened(path, artifact, threads)
    rows = runner.rows_of(runner.arrays(source, "input"))
    given = [runner.fitted(session, row) for row in itertools.islice(rows, 8)]
    runner.warm_up(session, given, *runner.WARM_UP)
    window, end = min(WINDOW, seconds / 6), min(END, seconds / 3)
    windows, first, last = [], [], collections.deque(maxlen=round(end / window))
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        begins, latencies = time.perf_counter() - began, []
        while not latencies or time.perf_counter() - began < begins + window:
            started = time.perf_counter()
            session.run(given[len(latencies) % len(given)])
            latencies.append(time.perf_counter() - started)
        windows.append(window_of(begins, latencies, cores))
        last.append((begins, np.array(latencies)))
        if begins < end:
            first.append(last[-1][1])
    return {
        "seconds": time.perf_counter() - began,
        "first": window_of(0.0, np.concatenate(first), ()),
        "last": window_of(last[0][0], np.concatenate([each for _, each in last]), ()),
        "windows": windows,
        "threads": threads,
        "runtime": version,
        **runner.circumstances(cores),
    }


def window_of(begins, latencies, cores):
    """Percentiles in seconds; degrees Celsius and hertz at its end, None where nobody says."""
    found = dict(zip(("p50", "p90", "p99"), np.percentile(latencies, (50, 90, 99)).tolist()))
    clocks = [runner.number_of(runner.CLOCKS % (core, "scaling_cur_freq")) for core in cores]
    degrees = [runner.number_of(zone) for zone in glob.glob(THERMAL_ZONES)] if cores else []
    known, warm = [c for c in clocks if c], [d for d in degrees if d]
    return dict(
        found,
        begins=begins,
        inferences=len(latencies),
        temperature=max(warm) / 1e3 if warm else None,
        clock=sum(known) * 1e3 / len(known) if known else None,
    )


def main(manifest_path, seconds, threads):
    manifest = runner.read_manifest(manifest_path)
    folder, artifact = os.path.dirname(os.path.abspath(manifest_path)), manifest["artifact"]
    version = runner.installed(artifact)
    source = os.path.join(folder, runner.golden_of(artifact)["folder"])
    path, wanted = os.path.join(folder, artifact["file"]), int(threads) or manifest["threads"]
    threads = min(wanted, os.cpu_count() or 1)
    print(json.dumps(sustained(path, artifact, threads, version, source, float(seconds))))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except runner.Trouble as trouble:
        print(trouble, file=sys.stderr)
        sys.exit(trouble.code)
