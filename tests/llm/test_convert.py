"""Streams are what whole tensors would be, go on after a kill, and take little memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from background import heeding_interrupts
from llm.checkpoints import TINY, random_tensors, write_checkpoint
from safetensors.torch import save_file

from edgebuild.llm import convert as converting
from edgebuild.llm import store
from edgebuild.llm.checkpoint import load_checkpoint
from edgebuild.llm.convert import JOURNAL, Converted, convert
from edgebuild.llm.importance import Importances, choose_importances
from edgebuild.llm.mix import Mix
from edgebuild.llm.quantize import Packed, dequantize, quantize
from edgebuild.llm.store import DATA, INDEX, LINE, PAGE, Entry, load_index
from edgebuild.vocabulary.errors import (
    InvalidBundle,
    InvalidCheckpoint,
    InvalidDestination,
    InvalidQuantity,
)

# Wide enough for tensors of several chunks, once chunks are made small.
SMALL_CHUNK = 1000


class Silence:
    """Progress that remembers the notes of its steps, and what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.said: list[str] = []

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Silence]:
        yield self

    def advance(self, note: str = "") -> None:
        self.notes.append(note)

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converting, "CHUNK", SMALL_CHUNK)


def converted(
    folder: Path, out: Path, mix: str = "int4-g32", is_searched: bool = False
) -> Converted:
    checkpoint = load_checkpoint(folder)
    importances = Importances(checkpoint) if is_searched else None
    return convert(checkpoint, out, Mix.parse(mix), Silence(), importances)


def stored(out: Path, entry: Entry) -> list[np.ndarray]:
    """The arrays of a tensor, as anyone reads them who knows the index."""
    data = (out / DATA).read_bytes()
    return [
        np.frombuffer(data, piece.dtype, offset=piece.offset, count=int(np.prod(piece.shape)))
        .reshape(piece.shape)
        for piece in entry.pieces
    ]  # fmt: skip


def floats_of(out: Path, entry: Entry) -> np.ndarray:
    arrays = stored(out, entry)
    if entry.layout.is_float:
        return arrays[0].astype(np.float32)
    codes, scales, *zeros = arrays
    return dequantize(
        Packed(codes, scales, zeros[0] if zeros else None), entry.layout, entry.inputs
    )


@pytest.mark.parametrize("is_searched", [False, True])
@pytest.mark.parametrize("mix", ["int4-g32", "int8-g16-asym", "int2-g64-asym+int4-g32-head"])
def test_a_stream_gives_what_whole_tensors_do(tmp_path: Path, mix: str, is_searched: bool) -> None:
    tensors = random_tensors(TINY)
    checkpoint = write_checkpoint(tmp_path / "model", tensors=tensors)
    done = converted(checkpoint, tmp_path / "out", mix, is_searched)
    index = load_index(tmp_path / "out")
    assert {entry.name for entry in index.entries} == tensors.keys()
    importances = Importances(load_checkpoint(checkpoint))
    for entry in done.index.entries:
        weights = tensors[entry.name].float().numpy()
        found = stored(tmp_path / "out", entry)
        if entry.layout.is_float:
            np.testing.assert_array_equal(found[0], weights)
            continue
        whole = quantize(weights, entry.layout, importances.of(entry) if is_searched else None)
        expected = [whole.codes, whole.scales, whole.zero_points][: len(found)]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_large_arrays_begin_at_pages_and_none_overlap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LARGE", 2000)
    done = converted(write_checkpoint(tmp_path / "model"), tmp_path / "out", "int4-g32-asym")
    places = [(p.offset, p.length) for entry in done.index.entries for p in entry.pieces]
    large = [offset for offset, length in places if length >= 2000]
    assert 0 < len(large) < len(places)
    assert all(offset % PAGE == 0 for offset in large)
    assert all(offset % LINE == 0 for offset, _ in places)
    ends = [offset + length for offset, length in places]
    assert all(end <= offset for end, (offset, _) in zip(ends[:-1], places[1:], strict=True))
    assert (tmp_path / "out" / DATA).stat().st_size == done.index.size == ends[-1]


def test_shards_give_the_same_bytes(tmp_path: Path) -> None:
    data = []
    for shards in (1, 3):
        checkpoint = write_checkpoint(tmp_path / f"in-{shards}", shards=shards)
        converted(checkpoint, tmp_path / f"out-{shards}")
        data.append((tmp_path / f"out-{shards}" / DATA).read_bytes())
    assert data[0] == data[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_floats_are_read_as_they_are(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = random_tensors(TINY, dtype)
    checkpoint = write_checkpoint(tmp_path / "model", tensors=tensors)
    done = converted(checkpoint, tmp_path / "out", "fp32")
    for entry in done.index.entries:
        expected = tensors[entry.name].float().numpy()
        np.testing.assert_array_equal(floats_of(tmp_path / "out", entry), expected)


def test_eight_bit_floats_are_scaled_by_their_squares(tmp_path: Path) -> None:
    config = TINY | {"quantization_config": {"quant_method": "fp8"}, "intermediate_size": 200}
    tensors = random_tensors(config)
    name = "model.layers.0.mlp.gate_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    checkpoint = write_checkpoint(tmp_path / "model", config, tensors)
    with pytest.raises(InvalidCheckpoint, match="gate_proj.weight_scale_inv of"):
        converted(checkpoint, tmp_path / "out", "fp32")
    tensors[f"{name}_scale_inv"] = torch.tensor([[2.0], [0.5]])
    write_checkpoint(tmp_path / "model", config, tensors)
    done = converted(checkpoint, tmp_path / "out", "fp32")
    entry = next(entry for entry in done.index.entries if entry.name == name)
    expected = tensors[name].float().numpy() * np.repeat([[2.0], [0.5]], (128, 72), axis=0)
    np.testing.assert_array_equal(floats_of(tmp_path / "out", entry), expected)


def test_the_norm_before_a_matrix_says_what_counts(tmp_path: Path) -> None:
    tensors = random_tensors(TINY)
    norm = torch.ones(64)
    norm[::7] = 30
    tensors["model.layers.0.input_layernorm.weight"] = norm.bfloat16()
    checkpoint = write_checkpoint(tmp_path / "model", tensors=tensors)
    losses = []
    name = "model.layers.0.self_attn.q_proj.weight"
    for is_searched in (False, True):
        out = tmp_path / f"out-{is_searched}"
        done = converted(checkpoint, out, "int4-g32-asym", is_searched)
        entry = next(entry for entry in done.index.entries if entry.name == name)
        off = floats_of(out, entry) - tensors[name].float().numpy()
        losses.append(float(np.square(off * norm.numpy()).sum()))
    assert losses[1] < 0.8 * losses[0]


def test_given_importances_come_before_norms(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_checkpoint(tmp_path / "model"))
    name = "model.layers.0.mlp.down_proj.weight"
    save_file({name: torch.arange(160.0)}, tmp_path / "importance.safetensors")
    importances = choose_importances(checkpoint, tmp_path / "importance.safetensors")
    entry = next(
        e for e in converting.lay_out(checkpoint.decoder, Mix.parse("int4")) if e.name == name
    )
    found = importances.of(entry)
    assert found.mean() == pytest.approx(1, rel=1e-3)
    assert found[159] == pytest.approx(2, rel=0.01)
    save_file({name: torch.ones(5)}, tmp_path / "short.safetensors")
    with pytest.raises(InvalidCheckpoint, match="must be 160 numbers"):
        choose_importances(checkpoint, tmp_path / "short.safetensors").of(entry)
    save_file({"other": torch.ones(5)}, tmp_path / "other.safetensors")
    with pytest.raises(InvalidCheckpoint, match="names no tensor"):
        choose_importances(checkpoint, tmp_path / "other.safetensors")


# ---- interruptions

SLOWLY = """
import sys, time
from edgebuild.cli import main
from edgebuild.llm import convert as converting
from edgebuild.llm import store
write = converting._write
def slowly(*given):
    time.sleep(0.05)
    return write(*given)
converting._write = slowly
sys.argv = ["edgebuild", "convert", *sys.argv[1:]]
main()
"""


def start_slowly(checkpoint: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", SLOWLY, str(checkpoint), "-o", str(out)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, preexec_fn=heeding_interrupts)


def wait_for_lines(journal: Path, count: int) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if journal.exists() and len(journal.read_text().splitlines()) > count:
            return
        time.sleep(0.01)
    raise AssertionError("the conversion has not begun")


@pytest.mark.parametrize(("blow", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_killed_conversion_goes_on_where_it_was(
    blow: signal.Signals, code: int, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "model")
    converted(checkpoint, tmp_path / "whole")
    out = tmp_path / "out"
    running = start_slowly(checkpoint, out)
    wait_for_lines(out / JOURNAL, 3)
    with pytest.raises(InvalidDestination, match="being written by another conversion"):
        converted(checkpoint, out)
    running.send_signal(blow)
    assert running.wait() == code
    assert not (out / INDEX).exists()
    # As if it had been killed in the middle of a line.
    with (out / JOURNAL).open("a") as journal:
        journal.write('["model.norm')
    done = converted(checkpoint, out)
    assert 3 <= done.resumed < len(done.index.entries)
    assert (out / DATA).read_bytes() == (tmp_path / "whole" / DATA).read_bytes()
    assert converted(checkpoint, out).read == 0


def test_what_was_damaged_since_is_made_anew(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model")
    first = converted(checkpoint, tmp_path / "out")
    right = (tmp_path / "out" / DATA).read_bytes()
    piece = first.index.entries[4].pieces[0]
    with (tmp_path / "out" / DATA).open("r+b") as data:
        data.seek(piece.offset)
        data.write(b"\xff\x00\xff")
    second = converted(checkpoint, tmp_path / "out")
    assert second.resumed == len(first.index.entries) - 1
    assert (tmp_path / "out" / DATA).read_bytes() == right


def test_another_precision_begins_anew(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model")
    progress = Silence()
    for _ in range(2):
        convert(load_checkpoint(checkpoint), tmp_path / "out", Mix.parse("int8"), progress)
    assert not progress.said
    done = convert(load_checkpoint(checkpoint), tmp_path / "out", Mix.parse("int4"), progress)
    assert done.resumed == 0
    assert progress.said == [
        f"{tmp_path / 'out'} holds what another conversion has written: it is replaced"
    ]
    assert (tmp_path / "out" / DATA).stat().st_size == done.index.size


# ---- what cannot be converted


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    tensors = random_tensors(TINY)
    tensors["model.layers.1.mlp.up_proj.weight"][100, 3] = float("nan")
    checkpoint = write_checkpoint(tmp_path / "model", tensors=tensors)
    with pytest.raises(
        InvalidCheckpoint, match=r"1.mlp.up_proj.weight, rows 90 to 104: a weight is not finite"
    ):
        converted(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out" / INDEX).exists()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(InvalidDestination, match="holds something else"):
        converted(write_checkpoint(tmp_path / "model"), tmp_path / "out")


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDestination, match="/proc cannot be written to"):
        converted(write_checkpoint(tmp_path / "model"), Path("/proc/out"))


def test_a_full_disk_is_noticed_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InvalidDestination, match=r"needs .* kB, and .* are free there"):
        converted(write_checkpoint(tmp_path / "model"), tmp_path / "out")


def test_what_has_no_floats_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "config-alone"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    with pytest.raises(InvalidCheckpoint, match="has no weights"):
        converted(folder, tmp_path / "out")
    config = TINY | {"quantization_config": {"quant_method": "bitsandbytes"}}
    with pytest.raises(InvalidCheckpoint, match="is quantized by bitsandbytes already"):
        converted(write_checkpoint(tmp_path / "quantized", config), tmp_path / "out")


def test_an_embedding_must_be_whole_blocks(tmp_path: Path) -> None:
    with pytest.raises(InvalidQuantity, match="a block of 128 does not divide the 64 columns"):
        converted(write_checkpoint(tmp_path / "model"), tmp_path / "out", "int4-g128")


def test_a_folder_without_an_index_is_no_converted_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidBundle, match="is no converted model"):
        load_index(tmp_path)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(InvalidBundle, match="is corrupt"):
        load_index(tmp_path)


# ---- memory

MEASURED = """
import sys
from pathlib import Path
from edgebuild.cli import main
sys.argv = ["edgebuild", "convert", *sys.argv[1:]]
try:
    main()
finally:
    status = Path("/proc/self/status").read_text()
    print(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
"""


def test_memory_is_below_half_a_gigabyte_and_the_same_for_more_layers(tmp_path: Path) -> None:
    peaks = []
    for layers in (1, 8):
        config = TINY | {"hidden_size": 512, "intermediate_size": 2048, "vocab_size": 1024}
        folder = write_checkpoint(tmp_path / f"{layers}", config | {"num_hidden_layers": layers})
        words = [str(folder), "-o", str(tmp_path / f"out-{layers}")]
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout) * 1024)
    assert peaks[1] < 1.05 * peaks[0]
    assert peaks[1] < 500e6
