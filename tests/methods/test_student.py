"""A student is its teacher in small."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from zoo import ZOO, samples

from edgebuild import Workload
from edgebuild.methods.student import Student
from edgebuild.vocabulary.errors import MethodFailed
from edgebuild.vocabulary.offer import NETWORK, Choice, Offer, Part, PartKind
from edgebuild.vocabulary.target import Activations, RuntimeFacts


def _workload(name: str) -> Workload:
    specimen = ZOO[name]()
    rows = samples(specimen, 32, seed=0)
    return Workload(name, specimen.network, specimen.example, rows, rows, ())


def _offers(workload: Workload, multiple: int, student: Student | None = None) -> list[Offer]:
    runtime = RuntimeFacts("onnxruntime", "any", 1, Activations.UINT8, multiple, {})
    return list((student or Student()).offers(workload, runtime))


def _student(workload: Workload, option: str, student: Student | None = None) -> nn.Module:
    chosen = {NETWORK: Choice("student", option)}
    return (student or Student()).apply(workload.network, chosen, workload)


def _answers(network: nn.Module, workload: Workload) -> Tensor:
    rows = [inputs[0] for inputs, _ in workload.calibration]  # type: ignore[union-attr]
    with torch.no_grad():
        return network(torch.cat(rows))  # type: ignore[no-any-return]


def test_every_width_comes_with_every_depth() -> None:
    offers = _offers(_workload("vit"), 8)
    assert {offer.part for offer in offers} == {NETWORK}
    assert [offer.choice.option for offer in offers] == [
        "width 75 %, depth 100 %, multiples of 8",
        "width 75 %, depth 67 %, multiples of 8",
        "width 50 %, depth 100 %, multiples of 8",
        "width 50 %, depth 67 %, multiples of 8",
        "width 25 %, depth 100 %, multiples of 8",
        "width 25 %, depth 67 %, multiples of 8",
        "width 12.5 %, depth 100 %, multiples of 8",
        "width 12.5 %, depth 67 %, multiples of 8",
    ]


def test_a_depth_that_takes_no_block_is_not_offered_twice() -> None:
    options = [offer.choice.option for offer in _offers(_workload("u-net"), 1)]
    assert options == [f"width {width} %, depth 100 %" for width in ("75", "50", "25", "12.5")]


def test_all_widths_are_multiplied_and_named() -> None:
    workload = _workload("residual-cnn")
    offer = next(o for o in _offers(workload, 8) if "width 50 %" in o.choice.option)
    changed = _student(workload, offer.choice.option)
    layers = {p: m for p, m in changed.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert layers["0"].out_channels == 8
    assert layers["6.body.3"].out_channels == 32
    # The image and the classes stay what they are.
    assert offer.outputs == {p: m.weight.shape[0] for p, m in layers.items() if p != "9"}
    assert offer.inputs == {p: m.weight.shape[1] for p, m in layers.items() if p != "0"}


def test_blocks_go_evenly_with_all_their_layers() -> None:
    workload = _workload("efficientnet-lite0")
    offer = next(o for o in _offers(workload, 8) if "depth 67 %" in o.choice.option)
    assert {path.split(".")[0] for path in offer.removed} == {"7", "12", "16"}
    assert not offer.removed & {*offer.outputs, *offer.inputs}
    names = {path for path, _ in _student(workload, offer.choice.option).named_modules()}
    assert not offer.removed & names


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_a_network_without_groups_has_no_student(name: str) -> None:
    assert _offers(_workload(name), 8) == []


def test_a_student_that_inherits_starts_nearer_to_its_teacher_than_a_fresh_one() -> None:
    workload = _workload("residual-cnn")
    wanted = _answers(workload.network, workload).log_softmax(dim=1)
    distances = [
        functional.kl_div(
            _answers(_student(workload, f"width 75 %, depth 100 %{words}"), workload).log_softmax(
                1
            ),
            wanted,
            reduction="batchmean",
            log_target=True,
        )
        for words in ("", ", fresh")
    ]
    assert distances[0] < 0.5 * distances[1]


def test_a_fresh_student_says_so_and_is_always_the_same() -> None:
    workload = _workload("vit")
    fresh = Student(widths=(0.5,), depths=(1.0,), initialization="fresh")
    option = _offers(workload, 8, fresh)[0].choice.option
    assert option == "width 50 %, depth 100 %, multiples of 8, fresh"
    once, again, inherited = (
        _student(workload, one).state_dict()
        for one in (option, option, option.removesuffix(", fresh"))
    )
    assert all(map(torch.equal, once.values(), again.values()))
    assert {key: value.shape for key, value in once.items()} == {
        key: value.shape for key, value in inherited.items()
    }
    for key in ("patches.weight", "positions", "blocks.0.attention.in_proj_weight"):
        assert not torch.equal(once[key], inherited[key])


def test_making_a_student_leaves_the_random_numbers_alone() -> None:
    workload = _workload("tuple-output")
    state = torch.get_rng_state()
    _student(workload, "width 50 %, depth 100 %, fresh")
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("part", "option"),
    [
        (NETWORK, "half"),
        (NETWORK, "width 0 %, depth 100 %"),
        (NETWORK, "width 120 %, depth 100 %"),
        (NETWORK, "width 50 %, depth 0 %"),
        (Part("0", PartKind.CHANNELS), "width 50 %, depth 100 %"),
    ],
)
def test_what_is_no_student_is_refused(part: Part, option: str) -> None:
    workload = _workload("tuple-output")
    with pytest.raises(MethodFailed, match="a student is one for the whole network"):
        Student().apply(workload.network, {part: Choice("student", option)}, workload)
