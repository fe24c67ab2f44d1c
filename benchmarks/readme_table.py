"""Writes what a bundle's search found into the README and into benchmarks/results/."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgebuild.bundles.manifest import Manifest, load_bundle
from edgebuild.report import words
from edgebuild.vocabulary.trial import Trial

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- made by `make bench` -->", "<!-- end -->"
COLUMNS = {
    "score": "score (validation)",
    "storage": "file",
    "latency_p50": "p50 measured",
    "memory": "memory",
    "integer_kernels": "integer kernels",
}


def main(dist: str) -> None:
    manifest = load_bundle(Path(dist)).manifest
    results = ROOT / "benchmarks" / "results" / f"{manifest.workload.name}.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(_results(manifest), indent=1) + "\n")
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{_table(manifest)}\n{END}{after}")


def _results(manifest: Manifest) -> dict[str, object]:
    return {
        "made_by": "make bench",
        "versions": dict(manifest.versions),
        "machine": {"cpu": manifest.measurement.machine, "threads": manifest.threads},
        "rows": [_row(trial) for trial in manifest.tried],
    }


def _row(trial: Trial) -> dict[str, object]:
    figures = {f"{name}": figure.value for name, figure in trial.figures.items()}
    return {
        "format": trial.recipe.format,
        "recipe": trial.recipe.name,
        "verdict": "failed" if trial.failure else trial.verdict.status,
        **figures,
    }


def _table(manifest: Manifest) -> str:
    measurement, floats = manifest.measurement, manifest.workload.float_score
    head = f"| | format | recipe | {' | '.join(COLUMNS.values())} | verdict |"
    rows = [
        f"| {'→' if trial.recipe == manifest.recipe else ''} "
        f"| {' | '.join(words.trial_row(trial, tuple(COLUMNS)))} "
        f"| {'failed' if trial.failure else trial.verdict.status} |"
        for trial in sorted(manifest.tried, key=lambda trial: -trial.score)
    ]
    return "\n".join(
        [
            f"`{manifest.workload.name}` on `{manifest.target.name}`: network in float "
            f"{floats['validation']:.4f} on validation and {floats['test']:.4f} on test data; "
            f"chosen artifact {manifest.figures['score'].value:.4f} on test data. Measured on "
            f"{measurement.machine}, {measurement.threads} threads, {measurement.taken_at[:10]}.",
            "",
            head,
            "|-" * (len(COLUMNS) + 4) + "|",
            *rows,
        ]
    )


if __name__ == "__main__":
    main(sys.argv[1])
