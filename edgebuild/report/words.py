"""Figures and verdicts in words: the one place where numbers become text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from edgebuild.bundles.manifest import ArmRecord, Manifest, SiteRecord
from edgebuild.vocabulary.artifact import Arithmetic, Census
from edgebuild.vocabulary.measurement import Evidence, Figure, Percentile, Sustained
from edgebuild.vocabulary.offer import Choice, PartKind
from edgebuild.vocabulary.recipe import Recipe
from edgebuild.vocabulary.trial import Parity, Trial
from edgebuild.vocabulary.units import (
    format_energy,
    format_power,
    format_share,
    format_size,
    format_time,
)
from edgebuild.vocabulary.verdict import BudgetLine, Status, Verdict


def format_tokens(rate: float) -> str:
    """ "8.31 tokens/s", "26,000 tokens/s"."""
    return f"{rate:,.0f} tokens/s" if rate >= 100 else f"{rate:.3g} tokens/s"


FORMATS: Mapping[str, Callable[[float], str]] = {
    "latency_p50": format_time,
    "latency_p99": format_time,
    "host_latency_p99": format_time,
    "load_time": format_time,
    "memory": format_size,
    "storage": format_size,
    "download": format_size,
    "power": format_power,
    "accuracy_drop": format_share,
    "integer_kernels": format_share,
    "integer_time": format_share,
    "kl": lambda nats: f"{nats:.3g} nats",
    "agreement": format_share,
    "perplexity": lambda value: f"{value:.4g}",
    "decode": format_tokens,
    "decode_bound": format_tokens,
    "prefill_bound": format_tokens,
    "energy_floor": format_energy,
}
# What a table of trials shows of each, in order.
# Below this, four digits after the point leave less than three of a score.
LEAST_SCORE = 0.1
TRIED = ("score", "storage", "latency_p50", "latency_p99", "memory", "integer_kernels")
TRIED_TITLES: Mapping[str, str] = {
    "score": "score (validation)",
    "storage": "storage",
    "latency_p50": "p50 measured",
    "latency_p99": "p99",
    "memory": "memory",
    "integer_kernels": "integer kernels",
}
TITLES: Mapping[str, str] = {
    "latency_p99": "latency (p99)",
    "memory": "peak memory",
    "storage": "storage",
    "download": "download size",
    "power": "power above idle",
    "accuracy_drop": "accuracy drop",
}


def value(name: str, figure: Figure) -> str:
    """ "4.3 ms", or "~4.3 ms (1.7 ms to 13 ms)" for an estimate, "~1 %" if its error is unknown.

    What other samples might lose is told of a measured accuracy drop, too.
    """
    is_told = figure.evidence.is_estimate or name == "accuracy_drop"
    error = interval(name, figure) if is_told else ""
    return f"{brief(name, figure)} ({error})" if error else brief(name, figure)


def brief(name: str, figure: Figure) -> str:
    """ "4.3 ms", or "~4.3 ms" for an estimate."""
    mark = "~" if figure.evidence.is_estimate else ""
    return mark + FORMATS.get(name, format_score)(figure.value)


def interval(name: str, figure: Figure) -> str:
    """ "1.7 ms to 13 ms", "at least 1.7 ms" where that is all one can say, or nothing."""
    form = FORMATS.get(name, format_score)
    if figure.low is not None and not figure.is_bounded:
        return f"at least {form(figure.low)}"
    if figure.low is None or figure.high is None:
        return ""
    if name == "accuracy_drop":
        return f"at most {form(figure.high)}"
    return f"{form(figure.low)} to {form(figure.high)}"


def with_interval(figure: Figure, form: Callable[[float], str]) -> str:
    """ "4.31 W (4.2 W to 4.42 W), measured": a figure with its 99 % interval and its label."""
    low, high = figure.interval
    mark = "~" if figure.evidence.is_estimate else ""
    return f"{mark}{form(figure.value)} ({form(low)} to {form(high)}), {figure.evidence}"


def format_score(score: float) -> str:
    """Four digits after the point; of what is too small for that, such as an error, four at all."""
    is_small = 0 < abs(score) < LEAST_SCORE
    return f"{score:.4g}" if is_small else f"{score:.4f}"


def number(count: int, noun: str) -> str:
    """ "1 thread", "4 threads"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def percentile(found: Percentile) -> str:
    """ "p99"."""
    return f"p{found.share * 100:g}"


def bounds(found: Percentile) -> str:
    """ "5.0 ms to 5.2 ms", or "at least 5.0 ms" where the run was too short for more."""
    if found.high is None:
        return f"at least {format_time(found.low)}"
    return f"{format_time(found.low)} to {format_time(found.high)}"


def evidence(figure: Figure) -> str:
    """ "measured on host (AMD EPYC)", or "predicted for robot-raspberry-pi-5: …"."""
    return f"{figure.evidence} {place(figure)}"


def place(figure: Figure) -> str:
    """ "on host (AMD EPYC)", or "for robot-raspberry-pi-5: …"."""
    on = "for" if figure.evidence in (Evidence.PREDICTED, Evidence.MODELLED_BOUND) else "on"
    note = f": {figure.note}" if figure.note else ""
    return f"{on} {figure.where}{note}"


def line(found: BudgetLine) -> tuple[str, str, str, str, str]:
    """Title, limit, value, status and reason of one budget line."""
    form = FORMATS[found.name]
    shown = value(found.name, found.figure) if found.figure else "unknown"
    reason = found.reason or (evidence(found.figure) if found.figure else "")
    if found.status is Status.BREACHED and found.limit > 0:
        reason = f"{over(found)}; {reason}"
    return title(found), form(found.limit), shown, str(found.status), reason


def title(found: BudgetLine) -> str:
    """ "peak memory", or "accuracy drop (agreement with the original)": what was scored."""
    scored = found.figure.basis if found.figure else ""
    return f"{TITLES[found.name]} ({scored})" if scored else TITLES[found.name]


def over(found: BudgetLine) -> str:
    """ "41 % over", for a line that is breached."""
    return f"{(found.overrun - 1) * 100:.0f} % over"


def breach(found: BudgetLine) -> str:
    """ "breaches latency (p99): ~31 ms, limit 22 ms"."""
    shown = brief(found.name, found.figure) if found.figure else "unknown"
    return f"breaches {title(found)}: {shown}, limit {FORMATS[found.name](found.limit)}"


OUT_OF_TIME = "The time was up before the search was done: more --minutes may find a better one."


def verdict(manifest: Manifest) -> str:
    """Does it fit, which line binds, and was there time to search to the end."""
    said = _fit(manifest)
    if not manifest.search.ran_out_of_time:
        return said
    return f"{said.removesuffix('.')}. {OUT_OF_TIME}"


def _fit(manifest: Manifest) -> str:
    found, target = manifest.verdict, manifest.target.name
    binding = found.binding
    if found.status is Status.BREACHED and binding is not None:
        return f"{judged(found, target)} {_origin(manifest)}; {next_step(binding)}"
    if not found.lines:
        return f"No budget was stated for {target}; pass --latency, --memory … to have one judged."
    return judged(found, target)


def judged(found: Verdict, target: str) -> str:
    """The lines that are breached, the binding one first, or how many lines were judged how."""
    binding = found.binding
    if found.status is Status.BREACHED and binding is not None:
        breached = [each for each in found.lines if each.status is Status.BREACHED]
        others = [each for each in breached if each is not binding]
        parts = (line(each)[:3] for each in (binding, *others))
        said = "; ".join(f"{title} is {shown}, budget {limit}" for title, limit, shown in parts)
        return f"Does not fit {target}: {said}."
    counts = Counter(each.status for each in found.lines)
    said = ", ".join(f"{counts[status]} {status}" for status in Status if counts[status])
    return f"No budget line of {target} is breached: {said}."


def _origin(manifest: Manifest) -> str:
    """How a candidate that breaks the budget came to be chosen."""
    tried = [trial for trial in manifest.tried if not trial.failure]
    if any(trial.verdict.status is not Status.BREACHED for trial in tried):
        return "It kept the budget on validation data and breaks it on test data"
    return f"This is the nearest of {number(len(tried), 'candidate')}"


def next_step(binding: BudgetLine) -> str:
    """What a user can do about a breached line."""
    option = {
        "latency_p99": "--latency",
        "memory": "--memory",
        "storage": "--storage",
        "download": "--download",
        "power": "--power",
        "accuracy_drop": "--accuracy-drop",
    }[binding.name]
    return f"raise {option}, or choose another target or a smaller network"


def price(site: SiteRecord) -> float:
    """Nats saved for a millisecond more; infinite where the better choice costs no time."""
    if not site.better:
        return 0.0
    return site.saves / (site.costs * 1e3) if site.costs > 0 else float("inf")


def site_row(site: SiteRecord) -> list[str]:
    """Path, choice, loss and time; the better choice with its cost, gain and price."""
    takes = "its layers' time" if site.is_shared else format_time(site.seconds)
    own = [site.path, site.choice, f"{site.loss:.2g}", takes]
    if not site.better:
        return [*own, "–", "", "", ""]
    is_free = site.costs <= 0
    bought = f"free; {site.untaken}" if site.untaken else "free"
    bought = bought if is_free else f"{price(site):.2g} per ms"
    return [*own, site.better, format_time(max(site.costs, 0.0)), f"{site.saves:.2g}", bought]


def loss(manifest: Manifest) -> str:
    """ "KL in nats", or what stands for it where the outputs are no classes."""
    return manifest.search.loss or "KL in nats"


def level(manifest: Manifest) -> str:
    """The rule that made a candidate of a lower score the chosen one; "" where it did not.

    Only where the score decided at all, and the candidates have as many doubtful lines.
    """
    chosen = next((one for one in manifest.tried if one.recipe == manifest.recipe), None)
    if chosen is None or chosen.failure or manifest.search.best != chosen.recipe.digest:
        return ""
    if chosen.verdict.status is Status.BREACHED or _lost(chosen) > 0:
        return ""
    higher = [
        trial
        for trial in manifest.tried
        if not trial.failure and trial.score > chosen.score and _unknown(trial) == _unknown(chosen)
        if trial.verdict.status is not Status.BREACHED
    ]
    if not higher:
        return ""
    which = "One candidate scores" if len(higher) == 1 else f"{len(higher)} candidates score"
    return (
        f"{which} higher than the chosen one: scores above the network's own count as equal to it, "
        "and the fastest of equals was chosen."
    )


def _lost(trial: Trial) -> float:
    return trial.figures["accuracy_drop"].value


def _unknown(trial: Trial) -> int:
    return sum(found.status is Status.UNKNOWN for found in trial.verdict.lines)


def climate(found: Sustained) -> str:
    """ "41 °C to 67 °C, 2.4 GHz to 1.8 GHz", or what the device does not say."""
    degrees = [window.temperature for window in found.windows if window.temperature is not None]
    clocks = [window.clock for window in found.windows if window.clock is not None]
    heat = f"{min(degrees):.0f} °C to {max(degrees):.0f} °C" if degrees else "no temperature known"
    fast, slow = (f"{end(clocks, default=0.0) / 1e9:.2f} GHz" for end in (max, min))
    speed = f"{fast} to {slow}" if clocks else "no clock known"
    return f"{heat}, {speed}"


def cell(text: str) -> str:
    """The text on one line, without ending the cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def trial_row(trial: Trial, names: tuple[str, ...]) -> list[str]:
    """Format, recipe, and one cell a figure."""
    cells = [value(name, trial.figures[name]) if name in trial.figures else "–" for name in names]
    return [trial.recipe.format, trial.recipe.name, *cells]


ARITHMETIC: Mapping[Arithmetic, str] = {
    Arithmetic.INTEGER: "computes on integers",
    Arithmetic.FLOAT: "computes in float",
    Arithmetic.CONVERSION: "quantizes or dequantizes in between",
    Arithmetic.UNTYPED: "the runtime does not say how it computes",
}
# What a candidate is called that is worse in a figure.
WORSE: Mapping[str, str] = {
    "accuracy_drop": "less accurate",
    "latency_p99": "slower",
    "storage": "larger",
    "memory": "in need of more memory",
}


def rejection(trial: Trial, chosen: Trial) -> str:
    """What speaks against a trial: its failure, the lines it breaches, or what it is worse in."""
    if trial.failure:
        return f"failed: {trial.failure}"
    if trial.verdict.overrun > chosen.verdict.overrun:
        breached = (line for line in trial.verdict.lines if line.status is Status.BREACHED)
        return "; ".join(breach(line) for line in breached)
    worse = [
        f"{word} by {excess}"
        for name, word in WORSE.items()
        if (excess := _excess(name, trial.figures[name].value, chosen.figures[name].value))
    ]
    return ", ".join(worse) or "worse in nothing that is compared here"


def _excess(name: str, value: float, chosen: float) -> str:
    """By how much a figure is above the chosen one's; empty where it is not."""
    if name == "accuracy_drop":
        # A score above the network's own counts as equal to it.
        value, chosen = max(value, 0.0), max(chosen, 0.0)
        return format_share(value - chosen) if value > chosen else ""
    if value <= chosen:
        return ""
    return format_share(value / chosen - 1) if chosen else format_share(1.0)


def families(recipe: Recipe) -> str:
    """ "prune ×4, factorize; 45 int8-static, 5 fp32": the methods, then the precisions."""
    methods = ", ".join(counted(sorted(choice.method for _, choice in recipe.reshaped)))
    return "; ".join(filter(None, (methods, recipe.summary)))


def reshaped(recipe: Recipe) -> list[tuple[Choice, PartKind, list[str]]]:
    """What was done to the network: each choice with the kind of part and the paths of all."""
    grouped: dict[tuple[Choice, PartKind], list[str]] = {}
    for part, choice in recipe.reshaped:
        grouped.setdefault((choice, part.kind), []).append(part.path)
    return [(choice, kind, paths) for (choice, kind), paths in grouped.items()]


def counted(texts: Iterable[str]) -> list[str]:
    """Each text once, with how often it is there: "Conv ×2"."""
    counts = Counter(texts)
    return [f"{text} ×{count}" if count > 1 else text for text, count in counts.items()]


def fallbacks(census: Census) -> list[tuple[str, str, list[str]]]:
    """The kernels that computed in float: kernel, reason and layers, grouped by the first two."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for fallback in census.fallbacks:
        grouped.setdefault((fallback.kernel, fallback.reason), []).extend(fallback.sites)
    return [(kernel, reason, sites) for (kernel, reason), sites in grouped.items()]


def declined(recipe: Recipe) -> list[tuple[str, list[str]]]:
    """Why layers have another precision than the recipe's, and which: by reason."""
    grouped: dict[str, list[str]] = {}
    for site, reason in recipe.declined:
        grouped.setdefault(reason, []).append(site.path)
    return list(grouped.items())


def some(paths: Sequence[str], most: int = 4) -> str:
    """ "a, b, c, d and 7 more"."""
    named = ", ".join(paths[:most])
    return f"{named} and {len(paths) - most} more" if len(paths) > most else named


def arm(proof: ArmRecord, parity: Parity) -> str:
    """ "emulated://cortex-a76, with integer dot products, XNNPACK of …: all … are bit-equal"."""
    dots = "with" if "asimddp" in proof.features else "without"
    where = f"{proof.where}, {dots} integer dot products, {proof.kernels} of {proof.runtime}"
    return f"{where}: {_bits(proof, parity)}"


def _bits(proof: ArmRecord, parity: Parity) -> str:
    """How an emulated processor's outputs compare with the golden ones, and those with float."""
    if proof.is_bit_equal:
        return f"all {proof.values} output values are bit-equal to the build machine's"
    return (
        f"{proof.differing} of {proof.values} output values differ from the build machine's, by "
        f"{proof.relative_error:.1g} of the largest value at most (one fp32 rounding: 6e-08; the "
        f"artifact itself from its fp32 network: {parity.relative_error:.1g})"
    )
