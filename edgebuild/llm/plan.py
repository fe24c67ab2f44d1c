"""Decides by arithmetic whether a decoder fits a device, and names the nearest that does.

Nothing is loaded or run. Shapes give bytes; bytes and the device's facts give bounds of speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from edgebuild.llm.engines import CHUNK, ONNXRUNTIME, Engine, by_layout, sizes_of
from edgebuild.llm.mix import Layouts, Mix
from edgebuild.llm.siblings import smaller_siblings
from edgebuild.vocabulary.decoder import Decoder, Role
from edgebuild.vocabulary.errors import InvalidQuantity
from edgebuild.vocabulary.fit import Fit, Loading, Nearest, Option, Room, Speed
from edgebuild.vocabulary.target import DeviceKind, Target
from edgebuild.vocabulary.units import Bytes, Hertz, Joules, format_size

# What CPU decoders reach of the memory's bandwidth (published for Android), and what a phone's
# heat leaves of that after minutes.
REACHED = 0.5
SUSTAINED = 0.55
# LPDDR5 takes 7 pJ a bit, older memory more: a floor.
JOULES_PER_BYTE = 8 * 7e-12
# A conversation shorter than this is none.
LEAST_CONTEXT = 512


WHOLE = "fp32"


def plan(
    decoder: Decoder,
    target: Target,
    context: int,
    precision: Mix | None = None,
    engine: Engine = ONNXRUNTIME,
) -> Fit:
    """Every precision that an engine has of a decoder, at a context of so many tokens.

    Raises:
        InvalidQuantity: a context that the model was not trained for.
    """
    _refuse_context(decoder, context)
    room = room_of(target)
    mixes = (precision,) if precision else engine.mixes
    options = tuple(_best(decoder, target, mix, context, engine) for mix in mixes)
    chosen = _first_fitting(options)
    return Fit(
        model=decoder.name,
        family=decoder.family,
        parameters=decoder.parameters,
        active_parameters=decoder.active_parameters,
        target=target.name,
        context=context,
        room=room,
        options=options,
        chosen=chosen,
        refusal="" if chosen else refusal(options, room, target),
        nearest=() if chosen else tuple(_nearest(decoder, target, context, mixes, engine)),
        notes=tuple(notes_on(target, chosen)),
    )


def room_of(target: Target) -> Room:
    """What one application may take, of its own and with mapped files."""
    memory = target.memory
    share = memory.mapped_share or memory.app_share
    total = Bytes(round(memory.ram * share))
    return Room(memory.ram, target.app_memory, max(total, target.app_memory))


def option_of(
    decoder: Decoder,
    target: Target,
    layouts: Layouts,
    name: str,
    planned: Option,
    engine: Engine = ONNXRUNTIME,
) -> Option:
    """What was packed in place of what was planned, with the cache and the context of that.

    `name` is what the layouts are called.
    """
    ways = [(planned.cache, loading) for loading in engine.loadings]
    options = [
        _option(decoder, target, layouts, way, planned.context, engine, name) for way in ways
    ]
    return _best_of(options)


def speed(decoder: Decoder, layouts: Layouts, cached: int, target: Target, context: int) -> Speed:
    """Bounds of speed: decoding waits for memory, prefilling for arithmetic.

    `cached` is bytes of an element of the cache.
    """
    sizes = list(sizes_of(decoder, layouts))
    weights = sum(size * each.read // each.count for each, size in sizes)
    read = weights + decoder.cached * context * cached
    bound = target.memory.bandwidth / read
    matrices = [each for each in decoder.weights if each.role is Role.MATRIX]
    is_float = all(one.is_float for each in matrices for one, _ in by_layout(layouts, each))
    rate = target.compute.fp32 if is_float else target.compute.int8
    # A prompt's token attends to half of the prompt, on average.
    multiplied = decoder.active_parameters + decoder.attended * context / 2
    is_phone = target.kind is DeviceKind.PHONE
    return Speed(
        bytes_per_token=Bytes(read),
        decode_bound=Hertz(bound),
        decode=Hertz(bound * REACHED),
        decode_sustained=Hertz(bound * REACHED * SUSTAINED) if is_phone else None,
        prefill_bound=Hertz(rate / (2 * multiplied)),
        energy_floor=Joules(read * JOULES_PER_BYTE),
    )


def refusal(options: Sequence[Option], room: Room, target: Target) -> str:
    """The sum that does not fit, of what comes nearest to fitting."""
    best = min(options, key=lambda option: option.overrun)
    needed = best.needs
    parts = {
        "weights": needed.mapped + needed.repacked,
        f"KV cache of {best.context} tokens": needed.cache,
        "activations and logits": needed.activations + needed.logits,
        "the runtime": needed.runtime,
    }
    summed = " + ".join(f"{format_size(size)} {word}" for word, size in parts.items())
    is_total = needed.total / room.total >= needed.anonymous / room.anonymous
    limit = room.total if is_total else room.anonymous
    kind = "" if is_total else " as memory of its own"
    share = f"{format_size(room.ram)} × {limit / room.ram:g}"
    even = "even " if len(options) > 1 else ""
    return (
        f"{even}{best.precision} needs {summed} = {format_size(needed.total)}; {target.name} "
        f"leaves an application {format_size(limit)}{kind} ({share}): {best.overrun:.3g} times that"
    )


def _refuse_context(decoder: Decoder, context: int) -> None:
    if context < 1:
        raise InvalidQuantity(f"a context of {context} tokens: it must hold one at least")
    longest = decoder.longest_context
    if longest is not None and context > longest:
        raise InvalidQuantity(
            f"a context of {context} tokens: {decoder.name} was made for {longest} at most"
        )


def _best(decoder: Decoder, target: Target, mix: Mix, context: int, engine: Engine) -> Option:
    """The first way to hold it that fits, else the one that exceeds least.

    The best cache goes first, then what the runtime does by itself.
    """
    return _best_of(_variants(decoder, target, mix, context, engine))


def _best_of(options: Sequence[Option]) -> Option:
    fitting = (option for option in options if option.fits)
    return next(fitting, min(options, key=lambda option: option.overrun))


def _first_fitting(options: Sequence[Option]) -> Option | None:
    """The most precise that fits.

    Checkpoints hold halves, so that floats of four bytes are only taken where they were asked for.
    """
    worthwhile = [each for each in options if each.precision != WHOLE] or options
    return next((option for option in worthwhile if option.fits), None)


def _variants(
    decoder: Decoder, target: Target, mix: Mix, context: int, engine: Engine
) -> list[Option]:
    ways = product(engine.caches, engine.loadings)
    return [_option(decoder, target, mix, way, context, engine) for way in ways]


def _option(
    decoder: Decoder,
    target: Target,
    layouts: Layouts,
    way: tuple[str, Loading],
    context: int,
    engine: Engine,
    name: str = "",
) -> Option:
    """`way` is the cache, and how weights are loaded."""
    room, (cache, loading) = room_of(target), way
    needed = engine.needs(decoder, layouts, cache, loading, context)
    return Option(
        model=decoder.name,
        precision=name or str(layouts),
        cache=cache,
        context=context,
        needs=needed,
        overrun=needed.overrun(room),
        longest_context=_longest(decoder, layouts, way, room, engine),
        speed=speed(decoder, layouts, engine.caches[cache], target, context),
    )


def _longest(
    decoder: Decoder, layouts: Layouts, way: tuple[str, Loading], room: Room, engine: Engine
) -> int:
    """The most tokens that fit: from a whole chunk on, memory grows by as much with each."""
    short, longer = (engine.needs(decoder, layouts, *way, n) for n in (CHUNK, CHUNK + 1))
    grows = longer.anonymous - short.anonymous
    left = min(room.anonymous - short.anonymous, room.total - short.total)
    if left < 0:
        return 0
    fitting = CHUNK + left // grows
    return min(fitting, decoder.longest_context or fitting)


def _nearest(
    decoder: Decoder, target: Target, context: int, asked: Sequence[Mix], engine: Engine
) -> Iterator[Nearest]:
    """Fewer bits, a shorter context, a smaller sibling: of each the best that fits."""
    fewer = [mix for mix in engine.mixes if mix.body.bits < asked[-1].body.bits]
    if found := _first_fitting([_best(decoder, target, mix, context, engine) for mix in fewer]):
        yield Nearest("fewer bits", found)
    if shorter := _shorter(decoder, target, context, asked, engine):
        yield Nearest("a shorter context", shorter)
    for sibling in smaller_siblings(decoder):
        longest = sibling.decoder.longest_context or context
        options = [
            _best(sibling.decoder, target, mix, min(context, longest), engine)
            for mix in engine.mixes
            if mix.body.bits >= 4
        ]
        if found := _first_fitting(options):
            yield Nearest(sibling.relation, found)
            return


def _shorter(
    decoder: Decoder, target: Target, context: int, asked: Sequence[Mix], engine: Engine
) -> Option | None:
    """The longest context that fits, at the most precise of the mixes that has room for one."""
    for mix in asked:
        variants = _variants(decoder, target, mix, LEAST_CONTEXT, engine)
        best = max(variants, key=lambda option: option.longest_context)
        if LEAST_CONTEXT <= best.longest_context < context:
            way = (best.cache, best.needs.loading)
            return _option(decoder, target, mix, way, best.longest_context, engine)
    return None


def notes_on(target: Target, chosen: Option | None) -> Iterator[str]:
    """What is to be known of a choice."""
    if target.memory.mapped_share is None:
        yield "mapped files are counted as the application's own memory on this target"
    if chosen is None:
        return
    if chosen.precision.startswith("int2"):
        yield "what two bits lose is unknown until it is measured, and mostly much"
    if chosen.needs.loading is Loading.MAPPED:
        yield "fits only with weights that are prepacked for the device and mapped"
    if chosen.cache == "int8":
        yield "fits only with a KV cache of eight bits"
