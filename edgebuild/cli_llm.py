"""The commands for language models: planning, converting, shrinking, building, measuring, chat."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgebuild.cli_options import BREACHED, AsJson, Context, Dist, plain, print_json
from edgebuild.vocabulary.errors import DeviceError, InputError

if TYPE_CHECKING:
    from edgebuild.bundles.verify import Replay
    from edgebuild.vocabulary.target import Target

PROMPT = 128
# Tokens of one answer at most.
ANSWER = 512
# What a distillation has unless it is told: steps, and stretches a step.
STEPS, BATCH = 1000, 8


def plan(
    checkpoint: Annotated[
        Path, typer.Argument(help="A Hugging Face decoder: its folder or config.json; or a .gguf.")
    ],
    target: Annotated[str, typer.Option("-t", "--target", help="A name, or the path of a .toml.")],
    context: Context = None,
    precision: Annotated[
        str | None, typer.Option(help="Only this: fp16, int4-g128, int4-g32+int8-head, …")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say by arithmetic whether a language model fits, how fast it can be, and what else does."""
    from edgebuild.inputs.target_file import load_target
    from edgebuild.llm.mix import Mix
    from edgebuild.llm.plan import plan as plan_fit
    from edgebuild.llm.source import open_source
    from edgebuild.report import terminal
    from edgebuild.report.fit import as_json as fit_as_json
    from edgebuild.report.fit import show_fit

    profile = load_target(target)
    mix = Mix.parse(precision) if precision else None
    decoder = open_source(checkpoint).decoder
    fit = plan_fit(decoder, profile, context or decoder.usual_context, mix)
    if as_json:
        print_json(fit_as_json(fit))
    else:
        show_fit(terminal.stderr(), fit)
    if fit.chosen is None:
        sys.exit(BREACHED)


def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="The folder of a Hugging Face decoder, or a .gguf.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write, or to go on in.")],
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp16, int8, int4-g128, int4-g32-asym, int4-g32+int8-head, …; int4-g32 unless set."
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Instead: bits by matrix, to lose least in so much: 4.2GB.")
    ] = None,
    read_size: Annotated[
        str | None, typer.Option("--read", help="As --size, of what one token reads: 3.5GB.")
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Search the scales that lose least; slower.")
    ] = False,
    importance: Annotated[
        Path | None,
        typer.Option(help="A .safetensors: how much each input of a tensor counts, by its name."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Round a language model to few bits, as a stream: memory does not depend on its size."""
    from edgebuild.llm.convert import convert as convert_stream
    from edgebuild.llm.importance import choose_importances
    from edgebuild.llm.mix import Mix
    from edgebuild.llm.source import open_source
    from edgebuild.report import progress, terminal
    from edgebuild.report.fit import show_converted
    from edgebuild.vocabulary.units import parse_size

    given = {"--precision": precision, "--size": size, "--read": read_size}
    if len(named := [name for name, value in given.items() if value]) > 1:
        raise InputError(f"give {' or '.join(named)}, not both")
    limit = parse_size(text) if (text := size or read_size) else None
    uniform = Mix.parse(precision or "int4-g32")
    read = open_source(checkpoint)
    importances = choose_importances(read, importance)
    console = terminal.stderr()
    with progress.shown(console) as bars:
        is_searched = search or importance is not None
        mixed = None
        if limit:
            # A solver, which takes a while to load.
            from edgebuild.llm.limit import Counted, Limit
            from edgebuild.llm.mixed import choose
            from edgebuild.llm.sites import survey

            counted = Counted.READ if read_size else Counted.STORED
            sites = survey(read, importances, bars, is_searched=is_searched)
            mixed = choose(sites, Limit.of(read.decoder, limit, counted))
            bars.say(f"chosen: {mixed}")
        found = convert_stream(
            read, out, mixed or uniform, bars, importances if is_searched else None
        )
    if as_json:
        print_json(found.summary)
    else:
        show_converted(console, found.folder, found.index.size, found.read, found.seconds)


@dataclass(frozen=True)
class Wanted:
    """What the options of `build` ask of a language model, as text."""

    context: int | None
    weights: str | None
    storage: str | None
    text: Path | None
    formats: Sequence[str]

    @property
    def format(self) -> str:
        if len(self.formats) > 1:
            raise InputError("--format: a language model's bundle has one format")
        return self.formats[0] if self.formats else "onnx"


def build_language_model(
    checkpoint: Path,
    target: Target,
    out: Path | None,
    asked: Wanted,
    strict: bool,
    as_json: bool,
) -> None:
    """Plan, calibrate, convert, write the graph, prove."""
    from edgebuild.llm import build
    from edgebuild.llm.bundle import as_json as model_as_json
    from edgebuild.llm.mix import Mix
    from edgebuild.report import progress, terminal
    from edgebuild.report.language_model import show_model
    from edgebuild.report.language_model_html import render_html
    from edgebuild.vocabulary.units import parse_size
    from edgebuild.vocabulary.verdict import Status

    wanted = build.Wanted(
        asked.context,
        Mix.parse(asked.weights) if asked.weights else None,
        parse_size(asked.storage) if asked.storage else None,
        asked.text,
        asked.format,
    )
    folder = out or Path("dist") / f"{checkpoint.stem}-{target.name}"
    console = terminal.stderr()
    with progress.shown(console) as bars:
        model = build.build_model(checkpoint, target, folder, wanted, bars, render_html)
    show_model(console, folder, model)
    if as_json:
        print_json(model_as_json(model))
    if strict and model.verdict.status is not Status.MET:
        is_breached = model.verdict.status is Status.BREACHED
        reason = "is more than there is" if is_breached else "was not measured on the target"
        console.print(f"--strict: memory {reason}")
        sys.exit(BREACHED)


def explain_language_model(dist: Path, as_json: bool) -> None:
    """What is in a bundle, and on what grounds."""
    from edgebuild.llm.bundle import as_json as model_as_json
    from edgebuild.llm.bundle import load_model
    from edgebuild.report import terminal
    from edgebuild.report.language_model import show_model

    model = load_model(dist)
    if as_json:
        print_json(model_as_json(model))
    else:
        show_model(terminal.stderr(), dist, model)


def bench_language_model(
    dist: Path,
    devices: list[str],
    prompts: list[int],
    new: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Rates of prompts and of answers, memory by its kinds, and the share of the bandwidth."""
    from edgebuild import catalog
    from edgebuild.inputs.device_file import device_url
    from edgebuild.inputs.target_file import load_target
    from edgebuild.llm.bench import Lengths, bench_model
    from edgebuild.llm.bundle import load_model
    from edgebuild.report import progress, terminal
    from edgebuild.report.language_model import show_rates

    target = load_target(load_model(dist).target)
    lengths = Lengths(tuple(prompts), new)
    console = terminal.stderr()
    with progress.shown(console) as bars:
        named = {name: catalog.device(device_url(name, target), bars) for name in devices}
        found = bench_model(dist, named, lengths, threads)
    if as_json:
        print_json({"bundle": str(dist), "devices": [plain(one) for one in found]})
    show_rates(console, found)
    if any(one.error for one in found):
        sys.exit(DeviceError.exit_code)


def verify_language_model(dist: Path, device: str, as_json: bool) -> None:
    """Every file, and every array of the weights, against its hash; and a short answer again."""
    from edgebuild import catalog
    from edgebuild.llm.bundle import verify_model
    from edgebuild.llm.golden import replay
    from edgebuild.report import progress, terminal

    console = terminal.stderr()
    with progress.shown(console) as bars:
        files = verify_model(dist, bars)
        with catalog.device(device) as entered, bars.step("answer once more"):
            found = replay(dist, entered)
    console.print(f"{files} files are those that were built; {_told(found)}")
    if as_json:
        print_json({"files": files, "replay": plain(found) if found else None})


def _told(found: Replay | None) -> str:
    if found is None:
        return "nothing was replayed: no answer was written down when this was built"
    return (
        f"golden logits within {found.relative_error:.2g} of their spread (limit {found.limit:g}) "
        f"in {found.runtime}"
    )


def chat(
    dist: Dist,
    once: Annotated[
        str | None, typer.Option("--once", help="Ask this, print the answer, and end.")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = ANSWER,
) -> None:
    """Talk to a language model's bundle in the terminal; an empty line ends it."""
    from edgebuild.llm.chat import Conversation

    conversation = Conversation.open(dist, most)
    if once is not None:
        _say(conversation.answer(once))
        return
    while True:
        try:
            asked = input("> ")
        except EOFError:
            return
        if not asked.strip():
            return
        _say(conversation.answer(asked))


def distill_data(
    dist: Dist,
    out: Annotated[Path, typer.Option("-o", "--out", help="The .jsonl to write, or go on with.")],
    prompts: Annotated[
        Path | None, typer.Option(help="A text: the teacher goes on from each of its lines.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Texts in the file at the end.")] = 100,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a text at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="What texts are drawn from.")] = 0,
) -> None:
    """Let a language model's bundle write the texts that a student is trained on."""
    from edgebuild.llm.distill_data import Sampling, write_samples
    from edgebuild.report import progress, terminal

    console = terminal.stderr()
    with progress.shown(console) as bars:
        found = write_samples(dist, prompts, out, Sampling(count, tokens, temperature, seed), bars)
    console.print(f"{out}: {found} texts")


def shrink(
    checkpoint: Annotated[
        Path, typer.Argument(help="The folder of a Hugging Face decoder, or a .gguf.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    text: Annotated[
        Path, typer.Option(help="What is learned from: a text, or the .jsonl of distill-data.")
    ],
    ffn: Annotated[float, typer.Option(help="The share of feed-forward channels to keep.")] = 1.0,
    heads: Annotated[float, typer.Option(help="The share of groups of heads to keep.")] = 1.0,
    layers: Annotated[float, typer.Option(help="The share of layers to keep.")] = 1.0,
    steps: Annotated[
        int | None, typer.Option(min=0, help=f"Of distillation; {STEPS} unless set, 0 for none.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.0, help="Instead of --steps: as many as fit.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Stretches of 256 tokens a step.")] = BATCH,
    learning_rate: Annotated[
        float | None, typer.Option(min=0.0, help="Its highest; by the model's size unless set.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="Softens what teacher and student expect; above 0.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="What batches are drawn from.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Prune a language model by what counts on a text, and distill it from what it was."""
    from edgebuild.llm.prune import Shares
    from edgebuild.llm.recover import Effort
    from edgebuild.llm.shrink import shrink as shrink_checkpoint
    from edgebuild.report import progress, terminal
    from edgebuild.report.language_model import show_shrunk

    if steps is not None and minutes is not None:
        raise InputError("give --steps or --minutes, not both")
    shares = Shares(ffn, heads, layers)
    length = STEPS if steps is None else steps
    effort = Effort(length, minutes, batch, learning_rate, temperature, seed=seed)
    console = terminal.stderr()
    with progress.shown(console) as bars:
        made = shrink_checkpoint(checkpoint, out, text, shares, effort, bars)
    if made is None:
        # One of several processes; the first one says it.
        return
    show_shrunk(console, out, made)
    if as_json:
        print_json(plain(made))


def _say(pieces: Iterator[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def refuse_options(given: Mapping[str, object], kind: str) -> None:
    """Refuses what does not apply to this kind of model, instead of passing it over."""
    if named := [f"--{name.replace('_', '-')}" for name, value in given.items() if value]:
        verb = "is" if len(named) == 1 else "are"
        raise InputError(f"{', '.join(named)} {verb} not for {kind}")
