"""Measures a language model's bundle on devices, beside what their memory allows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from edgebuild import generate
from edgebuild.bundles.side_by_side import side_by_side
from edgebuild.llm.bundle import LOADER, load_model
from edgebuild.llm.plan import JOULES_PER_BYTE
from edgebuild.vocabulary.contracts import Completed, Device, Fit, MemoryTrial
from edgebuild.vocabulary.errors import DeviceError, InvalidQuantity
from edgebuild.vocabulary.fit import Loading
from edgebuild.vocabulary.language_model import BenchedModel, Rates
from edgebuild.vocabulary.units import Hertz, Joules, Seconds, format_size

DEADLINE = Seconds(3600.0)


@dataclass(frozen=True)
class Lengths:
    """Tokens of the prompts, tokens that are decoded, and how often each is done."""

    prompts: Sequence[int] = (128,)
    new: int = 64
    repeats: int = 5


def bench_model(
    folder: Path, devices: Mapping[str, Device], lengths: Lengths, threads: int | None = None
) -> tuple[BenchedModel, ...]:
    """Runs it on all devices side by side, in processes of their own; failures are told.

    Raises:
        InvalidQuantity: more tokens than the bundle's context holds.
    """
    model = load_model(folder)
    longest = max(lengths.prompts) + lengths.new
    if longest > model.context:
        raise InvalidQuantity(
            f"{longest} tokens: the bundle was built for {model.context}; give fewer, or build it "
            "with a longer --context"
        )
    floor = Joules(model.read_bytes * JOULES_PER_BYTE)

    def one(name: str, device: Device) -> BenchedModel:
        bandwidth = _bandwidth(device, threads or 0)
        rates, trial = _rates(folder, device, lengths, threads or 0, model.option.needs.loading)
        return BenchedModel(name, model.read_bytes, floor, rates, "", trial, bandwidth)

    return side_by_side(
        devices,
        one,
        lambda name, _, error: BenchedModel(name, model.read_bytes, floor, error=str(error)),
    )


def _rates(
    folder: Path, device: Device, lengths: Lengths, threads: int, loading: Loading
) -> tuple[Rates, MemoryTrial | None]:
    # Our own loader, not the bundle's: what somebody else packed is data here, not code.
    loader = device.push(Path(generate.__file__))
    there = device.push(folder.absolute())
    words = ["python", loader, "--folder", there, "--threads", str(threads)]
    if loading is Loading.MAPPED:
        _done(device, [*words, "prepack"])
    prompts = [str(each) for each in lengths.prompts]
    counts = ["--new", str(lengths.new), "--repeats", str(lengths.repeats)]
    done = _done(device, [*words, "bench", "--prompt", *prompts, *counts])
    try:
        return TypeAdapter(Rates).validate_json(done.stdout), done.memory
    except ValidationError:
        raise DeviceError(f"{device.name}: what {LOADER} printed there are no rates") from None


def _bandwidth(device: Device, threads: int) -> Hertz | None:
    """In a process of its own, whose memory is not the model's; None where it has too little."""
    loader = device.push(Path(generate.__file__))
    done = device.run(["python", loader, "--threads", str(threads), "bandwidth"], DEADLINE)
    return Hertz(json.loads(done.stdout)["bandwidth"]) if done.returncode == 0 else None


def _done(device: Device, words: Sequence[str]) -> Completed:
    done = device.run(words, DEADLINE)
    if done.memory and done.memory.fit is Fit.OOM_KILLED:
        raise DeviceError(
            f"{device.name}: the kernel killed it at the limit of "
            f"{format_size(done.memory.limit)} ({done.memory.evidence})"
        )
    if done.returncode != 0:
        raise DeviceError(f"{device.name}: {done.reason}")
    return done
