"""The report that travels in a language model's bundle, as one HTML file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgebuild.report import _matrices, words
from edgebuild.report._memory import memory, parts
from edgebuild.report._page import fill_in
from edgebuild.vocabulary.fit import Option, Room
from edgebuild.vocabulary.language_model import LanguageModel, Proof
from edgebuild.vocabulary.measurement import Evidence, Figure
from edgebuild.vocabulary.units import format_share, format_size

DISTANCE = "distance from the float network"


@dataclass(frozen=True)
class Said:
    """A figure with its title, and how it came about; without a figure, why there is none."""

    title: str
    name: str
    figure: Figure | None
    how: str = ""


@dataclass(frozen=True)
class Open:
    """Something that nobody has shown yet, why, and what would show it."""

    what: str
    why: str
    next: str


def render_html(model: LanguageModel) -> str:
    """Fills in language_model.html.j2."""
    return fill_in(
        "language_model.html.j2",
        model=model,
        verdict=headline(model),
        headlines=_headlines(model),
        memory=memory(model.option, model.room, model.target),
        parts=parts(model.option),
        layouts=_matrices.layouts(model.matrices),
        sensitivities=_matrices.sensitivities(model.matrices),
        matrices=_matrices,
        is_measured=any(one.sensitivity is not None for one in model.matrices),
        compared=list(_compared(model.proof)) if model.proof else [],
        unproven=list(_unproven(model)),
        options=_options(model),
        reason=_reason,
        rates=list(_rates(model)),
    )


def headline(model: LanguageModel) -> str:
    """One sentence on the budget, and one on what was kept of the network."""
    binding, proof = model.verdict.binding, model.proof
    said = words.judged(model.verdict, model.target)
    if binding and binding.figure:
        title, limit, shown = words.line(binding)[:3]
        said += f" {title.capitalize()}: {shown} of {limit}."
    if proof is None:
        return f"{said} How far it is from the float network is unknown."
    return (
        f"{said} On {proof.tokens} tokens of {proof.text} it is {proof.kl:.3g} nats from the float "
        f"network and expects the same token first at {proof.agreement:.1%}."
    )


def _headlines(model: LanguageModel) -> list[Said]:
    speed = model.option.speed
    memory = next((line for line in model.verdict.lines if line.name == "memory"), None)
    weights = Figure(float(model.weights_bytes), Evidence.MEASURED, "disk")
    return [
        *([Said("memory needed", "memory", memory.figure)] if memory else []),
        Said("weights", "storage", weights, f"{model.parameters:,} parameters"),
        *(list(_compared(model.proof)) if model.proof else [Said(DISTANCE, "", None, "unknown")]),
        Said("decoding", "decode", _predicted(model, speed.decode)),
        Said("energy of a token, at least", "energy_floor", _bound(model, speed.energy_floor)),
    ]


def _compared(proof: Proof) -> Iterator[Said]:
    def figure(value: float) -> Figure:
        return Figure(value, proof.evidence, proof.where)

    tokens = f"a token, over {proof.tokens} tokens of {proof.text}"
    worst = f"{tokens}; {proof.kl_worst:.3g} at the worst of them"
    before = f"{proof.float_perplexity:.4g} of the float network on the same tokens"
    yield Said(f"{DISTANCE} (KL)", "kl", figure(proof.kl), worst)
    yield Said("same token first", "agreement", figure(proof.agreement), "as the float network")
    yield Said("perplexity", "perplexity", figure(proof.perplexity), before)


def _unproven(model: LanguageModel) -> Iterator[Open]:
    device = f"edgebuild bench BUNDLE --device adb://SERIAL, on a {model.target}"
    if model.proof is None:
        yield Open("what rounding has cost", model.unproven, "edgebuild build … --text FILE")
    elif model.context > model.proof.longest:
        yield Open(
            f"what becomes of tokens after the {model.proof.longest}th",
            f"the text was compared in stretches of {model.proof.longest} tokens, and the cache "
            f"holds {model.context}",
            "a longer conversation on a text of your own",
        )
    if model.proof:
        yield Open(
            "that the target's kernels give these very bits",
            f"both networks ran on {model.proof.where}, and kernels of other processors round "
            "otherwise",
            f"python run.py generate on a {model.target}, and the answer beside this one",
        )
    yield Open("memory on the target", "what it needs is a sum; nothing ran there", device)
    yield Open(
        "tokens a second",
        "the rates below follow from the target's bandwidth and peak rate, not from a run",
        device,
    )
    yield Open("energy", "the floor is for DRAM alone, and no meter was read", "a meter")


def _options(model: LanguageModel) -> Sequence[Option]:
    """The chosen one first; what was asked for may be none of those that are offered."""
    chosen = model.option
    return [chosen, *(each for each in model.options if each.precision != chosen.precision)]


def _reason(option: Option, chosen: Option, room: Room) -> str:
    """Why an option was not taken."""
    needs = option.needs
    if option is chosen:
        return "chosen"
    if option.fits and option.needs.stored < chosen.needs.stored:
        return "fits, and is less precise"
    if option.fits:
        return "fits, and is taken only where it is asked for"
    is_total = needs.total / room.total >= needs.anonymous / room.anonymous
    needed, left = (
        (needs.total, f"{format_size(room.total)} in all")
        if is_total
        else (needs.anonymous, f"{format_size(room.anonymous)} of its own")
    )
    return f"{format_size(needed)} where {left} are left: {option.overrun:.3g} times that"


def _rates(model: LanguageModel) -> Iterator[Said]:
    speed = model.option.speed
    read = f"{format_size(speed.bytes_per_token)} of weights and cache"
    bound, rate, hot = speed.decode_bound, speed.decode, speed.decode_sustained
    fastest = f"each token reads {read}, and the memory is no faster"
    yield Said("decoding, at most", "decode_bound", _bound(model, bound), fastest)
    reached = f"{format_share(rate / bound)} of that, as CPU decoders are known to reach"
    yield Said("decoding", "decode", _predicted(model, rate), reached)
    if hot is not None:
        left = f"heat leaves {format_share(hot / rate)} after minutes"
        yield Said("decoding, when it is hot", "decode", _predicted(model, hot), left)
    peak, multiplied = _bound(model, speed.prefill_bound), "the processor multiplies no faster"
    yield Said("reading a prompt, at most", "prefill_bound", peak, multiplied)
    floor = _bound(model, speed.energy_floor)
    moved = f"{read} out of DRAM; whole systems take 5 to 140 times as much"
    yield Said("energy of a token, at least", "energy_floor", floor, moved)


def _predicted(model: LanguageModel, value: float) -> Figure:
    return Figure(value, Evidence.PREDICTED, model.target)


def _bound(model: LanguageModel, value: float) -> Figure:
    return Figure(value, Evidence.MODELLED_BOUND, model.target)
