"""Has MLPerf's LoadGen time so many queries of a few microseconds: FOLDER COUNT.

Its summary is in the folder then.
"""

from __future__ import annotations

import sys
import time

import mlperf_loadgen as loadgen

LENGTH = 20e-6


def main(folder: str, count: int) -> None:
    def answer(queries: list[loadgen.QuerySample]) -> None:
        for query in queries:
            began = time.perf_counter()
            while time.perf_counter() - began < LENGTH:
                pass
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(query.id, 0, 0)])

    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.SingleStream
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_query_count = settings.max_query_count = count
    settings.min_duration_ms = 0
    output = loadgen.LogOutputSettings()
    output.outdir = folder
    logs = loadgen.LogSettings()
    logs.log_output = output
    system = loadgen.ConstructSUT(answer, lambda: None)
    library = loadgen.ConstructQSL(1, 1, lambda rows: None, lambda rows: None)
    loadgen.StartTestWithLogSettings(system, library, settings, logs)
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(system)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
