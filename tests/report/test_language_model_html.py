"""The page in a language model's bundle says what the record holds, draws it, asks for nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from llm.checkpoints import write_random_network, write_text, write_tokenizer
from report.pages import LONG, NASTY, Browse, Opened, read, rows

from edgebuild.inputs.target_file import load_target
from edgebuild.llm.build import Wanted, build_model
from edgebuild.llm.bundle import PAGE, load_model, verify_model
from edgebuild.llm.mix import Mix
from edgebuild.llm.plan import plan
from edgebuild.llm.source import open_source
from edgebuild.llm.store import load_index
from edgebuild.report import _matrices, words
from edgebuild.report._memory import memory, parts
from edgebuild.report.language_model_html import headline, render_html
from edgebuild.vocabulary.decoder import Role
from edgebuild.vocabulary.errors import InvalidBundle
from edgebuild.vocabulary.fit import Fit
from edgebuild.vocabulary.language_model import LanguageModel
from edgebuild.vocabulary.silence import Silence
from edgebuild.vocabulary.units import Bytes, format_size

TARGET = "phone-12gb"
BUDGET = "The budget, line by line"
MATRICES = "Every matrix"
UNPROVEN = "What was not proven, and why"
OPTIONS = "What else was planned, and why it was not taken"
LAYERS, LIMIT = 2, Bytes(60_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose matrices have bits of their own, chosen and proven on a text."""
    base = tmp_path_factory.mktemp("tiny")
    write_random_network(base, "qwen2", num_hidden_layers=LAYERS)
    text = write_text(write_tokenizer(base) / "words.txt")
    wanted = Wanted(256, limit=LIMIT, text=text)
    build_model(base, load_target(TARGET), base / "dist", wanted, Silence(), render_html)
    return base / "dist"


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return load_model(folder)


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / PAGE).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def fit() -> Fit:
    """A plan that does not fit at every precision."""
    config = Path(__file__).parents[1] / "llm" / "configs" / "llama-3-8b.json"
    return plan(open_source(config).decoder, load_target(TARGET), 4096)


def unproven(model: LanguageModel) -> LanguageModel:
    matrices = tuple(replace(one, sensitivity=None, loss=None) for one in model.matrices)
    return replace(model, matrices=matrices, proof=None, unproven="no text was given")


# ---- what stands in it


def test_it_is_one_of_the_files_that_verify_looks_at(folder: Path) -> None:
    assert PAGE in load_model(folder).files
    assert verify_model(folder, Silence()) > 5
    page = (folder / PAGE).read_bytes()
    (folder / PAGE).write_bytes(page.replace(b"predicted", b"met"))
    try:
        with pytest.raises(InvalidBundle, match=f"{PAGE} was changed"):
            verify_model(folder, Silence())
    finally:
        (folder / PAGE).write_bytes(page)


def test_the_page_of_a_bundle_is_that_of_its_record(model: LanguageModel, page: str) -> None:
    assert render_html(replace(model, files={})) == page


def test_a_build_without_a_page_leaves_none_of_an_earlier_one(tmp_path: Path) -> None:
    write_random_network(tmp_path, "llama", num_hidden_layers=1)
    words = (tmp_path, load_target(TARGET), tmp_path / "dist")
    wanted = Wanted(256, Mix.parse("int4-g32"))
    assert PAGE in build_model(*words, wanted, Silence(), lambda _: "a page").files
    assert PAGE not in build_model(*words, wanted, Silence()).files
    assert not (tmp_path / "dist" / PAGE).exists()


def test_it_opens_with_the_verdict(model: LanguageModel, page: str) -> None:
    assert f"<title>{model.name} on {TARGET}: predicted</title>" in page
    opening = page.split("<section")[0]
    assert headline(model) in opening
    assert model.proof is not None
    assert f"{model.proof.kl:.3g} nats" in opening


def test_every_budget_line_stands_in_it_with_its_evidence(model: LanguageModel, page: str) -> None:
    for row, line in zip(rows(page, BUDGET), model.verdict.lines, strict=True):
        assert line.figure is not None
        title, limit, _, status, _ = words.line(line)
        assert row[:5] == [title, limit, words.brief(line.name, line.figure), "–", status]
        assert f"{line.figure.evidence} {words.place(line.figure)}" in row[5]


def test_parts_of_the_memory_add_up_in_the_table_and_in_the_chart(
    model: LanguageModel, page: str
) -> None:
    needs, room = model.option.needs, model.room
    some = parts(model.option)
    assert sum(part.size for part in some) == needs.total
    assert sum(part.size for part in some if part.is_own) == needs.anonymous
    *found, total, own = rows(page, "The sum")
    assert [row[:2] for row in found] == [[p.title, f"~{format_size(p.size)}"] for p in some]
    assert total[1] == f"~{format_size(needs.total)}"
    assert own[1] == f"~{format_size(needs.anonymous)}"
    figure = json.loads(memory(model.option, room, TARGET).figure)
    in_all, of_its_own = (sum(bar["x"][row] for bar in figure["data"]) for row in (0, 1))
    # With the room that is left, each row is as long as its limit.
    lines = [shape["x0"] for shape in figure["layout"]["shapes"]]
    assert lines == pytest.approx([in_all, of_its_own])
    assert lines[0] / lines[1] == pytest.approx(room.total / room.anonymous)


def test_every_matrix_stands_in_it_as_the_file_has_it(
    folder: Path, model: LanguageModel, page: str
) -> None:
    apart = (Role.VECTOR, Role.ROUTER)
    stored = [entry for entry in load_index(folder).entries if entry.role not in apart]
    assert [one.layout for one in model.matrices] == [str(entry.layout) for entry in stored]
    sizes = [entry.layout.size(entry.rows, entry.inputs) for entry in stored]
    assert [one.size for one in model.matrices] == sizes
    found = rows(page, MATRICES)
    for row, one in zip(found, model.matrices, strict=True):
        assert row[:4] == [
            *(_matrices.title(one), one.layout),
            *(f"{8 * one.size / one.elements:.3g}", format_size(one.size)),
        ]
    assert {"lm_head", "mlp.down_proj, layer 1"} <= {row[0] for row in found}


def test_every_matrix_is_a_cell_of_its_layout_in_its_layer(model: LanguageModel) -> None:
    drawn = json.loads(_matrices.layouts(model.matrices).figure)
    kinds = [kind.strip() for kind in drawn["layout"]["yaxis"]["ticktext"]]
    cells = {
        (trace["name"], kinds[round(base + 0.42)], at if width < 1 else None)
        for trace in drawn["data"]
        for at, width, base in zip(trace["x"], trace["width"], trace["base"], strict=True)
    }
    assert cells == {(one.layout, one.kind, one.layer) for one in model.matrices}
    assert len({one.layout for one in model.matrices}) == len(drawn["data"]) > 1


def test_sensitivities_stand_in_it_where_they_were_measured(model: LanguageModel) -> None:
    assert all(one.sensitivity is not None for one in model.matrices)
    first, *known = model.matrices
    model = replace(model, matrices=(replace(first, sensitivity=None), *known))
    for row, one in zip(rows(render_html(model), MATRICES), model.matrices, strict=True):
        sensitivity = "–" if one.sensitivity is None else f"{one.sensitivity:.2g}"
        assert one.loss is not None
        assert row[4:] == [sensitivity, f"~{one.loss:.2g}"]
    drawn = _matrices.sensitivities(model.matrices)
    assert drawn is not None
    (trace,) = json.loads(drawn.figure)["data"]
    shades = trace["marker"]["opacity"]
    values = [math.log(one.sensitivity or 1.0) for one in known]
    assert sorted(range(len(known)), key=shades.__getitem__) == sorted(
        range(len(known)), key=values.__getitem__
    )


def test_whatever_sensitivities_were_measured_are_drawn(model: LanguageModel) -> None:
    """Also where logarithms round the dearest one up."""
    drawn = np.random.default_rng(0)
    for _ in range(300):
        some = [
            replace(one, sensitivity=float(value))
            for one, value in zip(model.matrices, drawn.lognormal(-3, 4, 99), strict=False)
        ]
        assert _matrices.sensitivities(some) is not None


def test_without_sensitivities_the_page_says_how_they_are_measured(model: LanguageModel) -> None:
    page = render_html(unproven(model))
    assert page.count('class="chart"') == 2
    assert "was not measured: that is done where bits are chosen by matrix" in page
    assert len(rows(page, MATRICES)[0]) == 4


def test_the_proof_stands_in_it_before_and_after(model: LanguageModel, page: str) -> None:
    proof = model.proof
    assert proof is not None
    kl, agreement, perplexity = rows(page, "Before and after")
    assert kl[1] == f"{proof.kl:.3g} nats"
    assert f"{proof.kl_worst:.3g} at the worst" in kl[2]
    assert agreement[1] == f"{proof.agreement * 100:.3g} %"
    assert perplexity[1] == f"{proof.perplexity:.4g}"
    assert perplexity[2].startswith(f"{proof.float_perplexity:.4g} of the float network")
    for row in (kl, agreement, perplexity):
        assert row[3] == f"measured on {proof.where}"
    # A random network may answer with tokens that are no text.
    said = replace(model, proof=replace(proof, answer_text="the cat sat"))
    assert '<pre class="answer">the cat sat</pre>' in render_html(said)


def test_memory_is_that_of_the_very_bits(model: LanguageModel, page: str) -> None:
    needs = model.option.needs
    vectors = needs.stored - sum(one.size for one in model.matrices)
    assert 0 < vectors < 5_000
    assert model.option.precision == "bits by matrix"
    assert rows(page, OPTIONS)[0][0] == "bits by matrix"
    (line,) = model.verdict.lines
    assert line.figure is not None
    assert line.figure.value == needs.total


def test_what_was_not_proven_stands_in_it_with_its_reason(model: LanguageModel) -> None:
    whole = {row[0]: row[1] for row in rows(render_html(model), UNPROVEN)}
    assert "what rounding has cost" not in whole
    assert "no meter was read" in whole["energy"]
    assert "what it needs is a sum" in whole["memory on the target"]
    assert model.proof is not None
    longer = render_html(replace(model, context=model.proof.longest + 1))
    assert any("tokens after the 256th" in row[0] for row in rows(longer, UNPROVEN))
    assert not any("tokens after" in what for what in whole)
    without = render_html(unproven(model))
    assert rows(without, UNPROVEN)[0][:2] == ["what rounding has cost", "no text was given"]
    assert "Not proven:" in without
    assert "Before and after" not in read(without).tables


def test_every_precision_of_the_plan_stands_in_it_with_why_not(
    model: LanguageModel, fit: Fit
) -> None:
    assert fit.chosen is not None
    page = render_html(
        replace(model, option=fit.chosen, options=fit.options, room=fit.room, context=4096)
    )
    found = {row[0]: row for row in rows(page, OPTIONS)}
    assert len(found) == len(fit.options)
    for option in fit.options:
        row = found[option.precision]
        assert row[1] == f"~{format_size(option.needs.stored)}"
        assert row[3] == f"~{format_size(option.needs.total)}"
        if option is fit.chosen:
            assert row[-1] == "chosen"
        elif option.fits:
            assert row[-1] == "fits, and is less precise"
        else:
            assert f"{option.overrun:.3g} times that" in row[-1]
    assert {row[-1].split(",")[0] for row in found.values()} >= {"chosen", "fits"}
    assert any("are left" in row[-1] for row in found.values())


def test_rates_are_bounds_and_estimates_and_say_so(model: LanguageModel, page: str) -> None:
    speed = model.option.speed
    found = {row[0]: row for row in rows(page, "How fast it can be")}
    for title, value, evidence in (
        ("decoding, at most", speed.decode_bound, "modelled-bound"),
        ("decoding", speed.decode, "predicted"),
        ("decoding, when it is hot", speed.decode_sustained, "predicted"),
        ("reading a prompt, at most", speed.prefill_bound, "modelled-bound"),
    ):
        assert value is not None
        assert found[title][1] == f"~{words.format_tokens(value)}"
        assert found[title][3] == f"{evidence} for {TARGET}"
    assert found["energy of a token, at least"][3] == f"modelled-bound for {TARGET}"


def test_nothing_estimated_looks_measured(page: str) -> None:
    found = [(look, text) for look, text in read(page).figures if text not in ("Solid", "~dashed")]
    assert {look for look, _ in found} == {"solid", "hollow"}
    for look, text in found:
        assert text.startswith("~") == (look == "hollow"), text


def test_versions_and_terms_stand_in_it(model: LanguageModel, page: str) -> None:
    for name, version in model.versions.items():
        assert f"{name} {version}" in page
    assert f"edgebuild {model.edgebuild}" in page
    assert "The MIT License. Copyright (c) Plotly, Inc." in page


def test_the_runtime_and_its_kernels_stand_in_it(model: LanguageModel) -> None:
    other = replace(
        model,
        **{
            "format": "tflite",
            "minimum_runtime": {"ai-edge-litert": "2.1"},
            "kernels": {"XNN": 15},
        },
    )
    found = dict(rows(render_html(other), "What exactly this is"))
    assert found["format"].startswith("tflite; known to run rightly from ai-edge-litert 2.1 on")
    assert found["kernels"].startswith("15 layers on XNN: measured where it was built")
    assert "hash of every file" in found["weights"]
    plain = dict(rows(render_html(replace(model, kernels={})), "What exactly this is"))
    assert plain["format"] == "onnx"
    assert "kernels" not in plain
    assert "weights.json has the hash of every array" in plain["weights"]


def test_markup_in_names_is_shown_and_does_nothing(model: LanguageModel) -> None:
    page = render_html(named(model, NASTY))
    assert "<script>alert" not in page
    assert "{{ 7 * 7 }}" in page
    assert any(NASTY in row[0] for row in rows(page, MATRICES))


def named(model: LanguageModel, name: str) -> LanguageModel:
    """The record with a name in every place where a checkpoint or a user gives one."""
    assert model.proof is not None
    return replace(
        model,
        **{"name": name, "family": name, "source": name, "scales": name, "notes": (name,)},
        proof=replace(model.proof, text=name, answer_text=name),
        matrices=tuple(replace(one, kind=name) for one in model.matrices),
    )


# ---- in a browser


@pytest.fixture(scope="module")
def opened(page: str, browse: Browse) -> Opened:
    return browse(page)


@pytest.mark.slow
def test_a_browser_draws_every_chart_and_is_asked_for_nothing(
    model: LanguageModel, opened: Opened
) -> None:
    assert headline(model) in opened.said["verdict"]
    needs, bits, cost = opened.said["charts"]
    assert f"limit {format_size(model.room.total)}" in needs
    assert all(one.layout in bits for one in model.matrices)
    assert "lm_head" in cost
    assert opened.said["bars"] >= len(model.matrices)
    assert opened.complaints == []
    assert opened.said["requests"] == []


@pytest.mark.slow
def test_no_name_is_too_long_or_too_odd_for_a_narrow_page(
    model: LanguageModel, browse: Browse
) -> None:
    odd = browse(render_html(named(model, LONG + NASTY)), width=500)
    assert odd.said["needed"] <= odd.said["width"]
    assert odd.complaints == []
