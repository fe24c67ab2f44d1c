"""Plans agree with the worked examples, refuse with the sum, and name what does fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgebuild.inputs.target_file import load_target
from edgebuild.llm.config import load_decoder, read_decoder
from edgebuild.llm.engines import LITERT, ONNXRUNTIME
from edgebuild.llm.mix import MIXES, Mix
from edgebuild.llm.plan import plan, room_of
from edgebuild.vocabulary.decoder import Decoder
from edgebuild.vocabulary.errors import InvalidQuantity
from edgebuild.vocabulary.fit import Fit, Loading
from edgebuild.vocabulary.weight_format import WeightFormat

CONFIGS = Path(__file__).parent / "configs"


def decoder(name: str) -> Decoder:
    return load_decoder(CONFIGS / f"{name}.json")


def planned(name: str, target: str, context: int = 4096, precision: str = "") -> Fit:
    mix = Mix.parse(precision) if precision else None
    return plan(decoder(name), load_target(target), context, mix)


# Gigabytes of weights at each precision, and bytes of cache that a token leaves.
PRECISIONS = ("fp32", "fp16", "int8-g32", "int4-g32", "int4-g32+int8-head")
WORKED = {
    "llama-3.2-1b": (4.94, 2.47, 1.31, 0.70, 0.83, 32_768),
    "llama-3.2-3b": (12.9, 6.43, 3.41, 1.81, 2.00, 114_688),
    "qwen2.5-7b": (30.5, 15.2, 8.09, 4.28, 4.56, 57_344),
    "llama-3-8b": (32.1, 16.1, 8.53, 4.52, 4.78, 131_072),
    "deepseek-r1": (2684, 1342, 713, 377, None, 70_272),
    "mixture-1.8t": (7200, 3600, 1912, 1012, None, None),
}


@pytest.mark.parametrize("name", WORKED)
def test_weights_and_cache_are_those_of_the_worked_examples(name: str) -> None:
    *sizes, cached = WORKED[name]
    model = decoder(name)
    for precision, size in zip(PRECISIONS, sizes, strict=True):
        needed = ONNXRUNTIME.needs(model, Mix.parse(precision), "fp16", Loading.MAPPED, 1)
        if size is not None:
            assert needed.stored / 1e9 == pytest.approx(size, rel=4e-3, abs=5e-3), precision
        if cached is not None:
            assert needed.cache == cached
        # Kernels compute with floats of four bytes, whatever halves a file holds; beside blocks of
        # few bits they hold sums.
        low, high = {"fp32": (1.0, 1.0), "fp16": (1.4, 2.0)}.get(precision, (1.15, 1.45))
        assert low <= needed.mapped / needed.stored <= high


# A Llama of 6 layers of 1024, ffn 2816, 4 of 16 heads cached, 16384 words, head apart: the files
# that onnxruntime 1.32 wrote of it, which hold the weights as they were and as they are packed.
PREPACKED = {"int4-g32": 125_894_784, "int4-g128": 101_367_936, "int8-g32": 218_738_816}


@pytest.mark.parametrize("precision", PREPACKED)
def test_prepacked_weights_are_as_large_as_was_measured(precision: str) -> None:
    config = {
        **{"model_type": "llama", "hidden_size": 1024, "intermediate_size": 2816},
        **{"num_hidden_layers": 6, "num_attention_heads": 16, "num_key_value_heads": 4},
        **{"vocab_size": 16384, "max_position_embeddings": 4096},
    }
    model, mix = read_decoder(config, "measured", "measured"), Mix.parse(precision)
    mapped, heap = (
        ONNXRUNTIME.needs(model, mix, "fp16", loading, 1)
        for loading in (Loading.MAPPED, Loading.REPACKED)
    )
    looked_up = heap.mapped
    packed = mapped.mapped - looked_up
    assert mapped.stored + packed == pytest.approx(PREPACKED[precision], rel=0.01)
    assert packed == heap.repacked


def test_a_model_of_1_8_trillion_parameters_takes_7_2_terabytes_in_fp32() -> None:
    fit = planned("mixture-1.8t", "phone-24gb", precision="fp32")
    assert fit.chosen is None
    assert fit.refusal.startswith("fp32 needs 7.2 TB weights + ")
    assert "leaves an application 12 GB (24 GB × 0.5): 600 times that" in fit.refusal
    assert fit.nearest[0].option.model.startswith("Mistral")


def test_llama_3_8b_fits_12_gb_with_four_bits_mapped() -> None:
    fit = planned("llama-3-8b", "phone-12gb")
    assert fit.chosen is not None
    assert fit.chosen.precision == "int4-g128+int8-head"
    assert fit.chosen.needs.loading is Loading.MAPPED
    assert "prepacked" in " ".join(fit.notes)
    # The embedding, of as many weights as the head, is only looked up; half a gigabyte of cache.
    head = 128_256 * 4096
    read = 0.515625 * (8.030e9 - 2 * head) + 1.0625 * head + 131_072 * 4096
    assert fit.chosen.speed.bytes_per_token == pytest.approx(read, rel=2e-3)
    assert fit.chosen.speed.decode_bound == pytest.approx(76.8e9 / read, rel=2e-3)
    assert fit.chosen.speed.decode == pytest.approx(0.5 * fit.chosen.speed.decode_bound)
    assert fit.chosen.speed.energy_floor == pytest.approx(read * 56e-12, rel=2e-3)


def test_qwen_7b_fits_24_gb_with_eight_bits() -> None:
    fit = planned("qwen2.5-7b", "phone-24gb")
    assert fit.chosen is not None
    assert fit.chosen.precision == "int8-g32"


@pytest.mark.parametrize("target", ["phone-12gb", "phone-24gb"])
def test_deepseek_r1_fits_no_phone_but_a_model_distilled_from_it_does(target: str) -> None:
    fit = planned("deepseek-r1", target)
    assert fit.chosen is None
    assert fit.refusal.startswith("even int2-g32-asym needs 378 GB weights + ")
    (nearest,) = fit.nearest
    assert nearest.change == "a model distilled from it"
    assert nearest.option.fits
    assert nearest.option.model.startswith("DeepSeek-R1-Distill")


def test_a_context_that_is_too_long_is_answered_with_the_longest_that_fits() -> None:
    fit = planned("qwen2.5-7b", "phone-12gb", context=131_072)
    assert fit.chosen is None
    nearest = fit.nearest[0]
    assert nearest.change == "a shorter context"
    longest = nearest.option.context
    model, target = decoder("qwen2.5-7b"), load_target("phone-12gb")
    mix = Mix.parse(nearest.option.precision)
    loading = nearest.option.needs.loading

    def overrun(context: int) -> float:
        return ONNXRUNTIME.needs(model, mix, nearest.option.cache, loading, context).overrun(
            room_of(target)
        )

    assert overrun(longest) <= 1 < overrun(longest + 1)


def test_a_precision_that_does_not_fit_is_answered_with_fewer_bits() -> None:
    fit = planned("llama-3-8b", "phone-12gb", precision="fp16")
    assert [nearest.change for nearest in fit.nearest] == ["fewer bits", "a smaller sibling"]
    assert fit.nearest[0].option.precision == "int4-g128+int8-head"


def test_floats_of_four_bytes_are_only_taken_where_they_are_asked_for() -> None:
    fit = planned("llama-3.2-1b", "phone-24gb")
    assert fit.options[0].fits
    assert fit.chosen is not None
    assert fit.chosen.precision == "fp16"
    asked = planned("llama-3.2-1b", "phone-24gb", precision="fp32")
    assert asked.chosen is not None


def test_a_target_that_says_nothing_of_mapped_files_grants_no_more() -> None:
    target = load_target("robot-raspberry-pi-5")
    assert room_of(target).total == target.app_memory
    fit = plan(decoder("llama-3.2-1b"), target, 2048)
    assert "counted as the application's own" in fit.notes[0]
    assert fit.chosen is not None
    assert fit.chosen.speed.decode_sustained is None


def test_a_context_that_the_model_was_not_made_for_is_refused() -> None:
    with pytest.raises(InvalidQuantity, match="llama-3-8b was made for 8192 at most"):
        planned("llama-3-8b", "phone-12gb", context=8193)


def test_repacked_weights_take_a_half_and_ten_bytes_a_block_more() -> None:
    model = decoder("llama-3.2-1b")
    needed = ONNXRUNTIME.needs(model, Mix.parse("int4-g32"), "fp16", Loading.REPACKED, 1)
    assert needed.repacked == pytest.approx(model.active_parameters * (0.5 + 10 / 32), rel=1e-3)


def test_precisions_go_from_the_most_precise_to_the_smallest() -> None:
    model = decoder("llama-3-8b")
    sizes = [ONNXRUNTIME.needs(model, mix, "fp16", Loading.MAPPED, 1).stored for mix in MIXES]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("text", ["fp16", "int8-g16", "int4-g32-asym", "int4-g128+int8-g64-head"])
def test_a_mix_reads_what_it_is_written_as(text: str) -> None:
    assert str(Mix.parse(text)) == text


@pytest.mark.parametrize("text", ["int5", "fp8", "int4-g48", "int4+int8", "fp16-g32", "four"])
def test_what_is_no_precision_is_refused(text: str) -> None:
    with pytest.raises(InvalidQuantity):
        Mix.parse(text)


def test_a_row_is_padded_to_whole_blocks() -> None:
    # Three blocks of 16 bytes, three scales of two, and zero points of half a byte, rounded up.
    assert WeightFormat(4, 32, is_symmetric=False).size(1, 65) == 3 * 16 + 3 * 2 + 2


def test_litert_has_four_bits_in_blocks_and_copies_its_cache_of_floats() -> None:
    model, target = decoder("llama-3.2-1b"), load_target("phone-12gb")
    found = plan(model, target, 4096, engine=LITERT)
    assert found.chosen is not None
    assert (found.chosen.precision, found.chosen.cache) == ("int4-g32", "fp32")
    halves = plan(model, target, 4096, Mix.parse("int4-g32")).chosen
    assert halves is not None
    assert found.chosen.needs.cache == 6 * 2 * halves.needs.cache
    assert [each.needs.loading for each in found.options] == [Loading.REPACKED] * 5
