"""What every method must keep, on every network of the zoo."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from zoo import ZOO, samples

from edgebuild import Workload, catalog
from edgebuild.capture import capture
from edgebuild.vocabulary.contracts import Stage
from edgebuild.vocabulary.offer import Choice, Offer, Part
from edgebuild.vocabulary.precision import LayerKind, Precision
from edgebuild.vocabulary.program import Program
from edgebuild.vocabulary.target import Activations, RuntimeFacts

METHODS = [name for name in catalog.names("methods") if name != "quantize"]
KERNELS = dict.fromkeys(LayerKind, (Precision.INT8_STATIC, Precision.INT4_WEIGHTS))
RUNTIME = RuntimeFacts("onnxruntime", "any", 1, Activations.UINT8, 4, KERNELS)
# How many offers of a method are carried out alone on each network.
TRIED = 2
# Methods that only change weights take their time: of what they offer, the first is carried out,
# and again only on these.
REPEATED = ("bert", "tuple-output")

Chosen = Mapping[Part, Choice]
every_method = pytest.mark.parametrize("method", METHODS)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=ZOO)
def name(request: pytest.FixtureRequest) -> str:
    """One network after the other: what methods find out about it serves all tests of it."""
    return str(request.param)


@every_method
def test_an_offer_is_carried_out_as_it_says(name: str, method: str) -> None:
    given, offers = _workload(name), _offers(name, method)
    for offer in _evenly(offers, TRIED if _shrinks(method) else 1):
        changed = _applied(name, method, {offer.part: offer.choice})
        _assert_runs_like(changed, given)
        _assert_as_offered(changed, [offer], given.network)
        capture(changed, given.example)
        if _shrinks(method):
            assert _size(changed) < _size(given.network), offer


@every_method
def test_offers_of_all_parts_are_carried_out_together(name: str, method: str) -> None:
    given, offers = _workload(name), _offers(name, method)
    together = [_of_part(offers, part, number) for number, part in enumerate(_parts(offers))]
    if not together:
        pytest.skip("nothing is offered")
    if len(together) == 1 and not _shrinks(method):
        pytest.skip("the only part is tried alone")
    changed = _applied(name, method, {offer.part: offer.choice for offer in together})
    _assert_runs_like(changed, given)
    _assert_as_offered(changed, together, given.network)
    program = capture(changed, given.example)
    removed = frozenset[str]().union(*(offer.removed for offer in together))
    assert not removed & {site.path for site in program.sites}
    if _shrinks(method):
        assert _macs(program) < _macs(_program(name))


@every_method
def test_a_method_that_offers_nothing_says_why(name: str, method: str) -> None:
    declined = catalog.method(method).declined(_workload(name), RUNTIME)
    assert _offers(name, method) or declined
    assert all(declined.values())


@every_method
def test_the_same_choices_give_the_same_network(name: str, method: str) -> None:
    offers = _offers(name, method)
    if not offers:
        pytest.skip("nothing is offered")
    if not _shrinks(method) and name not in REPEATED:
        pytest.skip("twice takes too long")
    chosen = [(part, _of_part(offers, part, 0).choice) for part in _parts(offers)]
    before = copy.deepcopy(_workload(name).network.state_dict())
    once = _applied(name, method, dict(chosen)).state_dict()
    again = _applied(name, method, dict(reversed(chosen))).state_dict()
    _assert_equal(once, again)
    _assert_equal(_workload(name).network.state_dict(), before)


@every_method
def test_every_offer_is_another_choice_of_that_method(name: str, method: str) -> None:
    offers = _offers(name, method)
    assert {offer.choice.method for offer in offers} <= {method}
    assert len({(offer.part, offer.choice) for offer in offers}) == len(offers)


@cache
def _workload(name: str) -> Workload:
    specimen = ZOO[name]()
    calibration, validation = samples(specimen, 16, seed=0), samples(specimen, 8, seed=1)
    return Workload(name, specimen.network, specimen.example, calibration, validation, ())


@cache
def _program(name: str) -> Program:
    given = _workload(name)
    return capture(given.network, given.example)


@cache
def _offers(name: str, method: str) -> tuple[Offer, ...]:
    return tuple(catalog.method(method).offers(_workload(name), RUNTIME))


def _shrinks(method: str) -> bool:
    """Whether what it leaves is to be smaller than what it is given."""
    return catalog.method(method).stage <= Stage.FACTORIZE


def _evenly(offers: Sequence[Offer], count: int) -> list[Offer]:
    taken = min(len(offers), count)
    return [offers[number * (len(offers) - 1) // max(taken - 1, 1)] for number in range(taken)]


def _parts(offers: Sequence[Offer]) -> list[Part]:
    return list(dict.fromkeys(offer.part for offer in offers))


def _of_part(offers: Sequence[Offer], part: Part, number: int) -> Offer:
    """One of a part's offers; neighboring parts get different ones."""
    there = [offer for offer in offers if offer.part == part]
    return there[number % len(there)]


def _applied(name: str, method: str, chosen: Chosen) -> nn.Module:
    given = _workload(name)
    return catalog.method(method).apply(given.network, chosen, given)


def _assert_runs_like(changed: nn.Module, given: Workload) -> None:
    """It answers as the original does in structure, for one sample and for several."""
    # An Identity is the same in training.
    assert not [m for m in changed.modules() if m.training and not isinstance(m, nn.Identity)]
    rows = [inputs for inputs, _ in given.calibration][:3]  # type: ignore[union-attr]
    several = tuple(torch.cat(column) for column in zip(*rows, strict=True))
    for inputs in (given.example, several):
        with torch.no_grad():
            wanted, got = given.network(*inputs), changed(*inputs)
        assert pytree.tree_structure(got) == pytree.tree_structure(wanted)
        for one, other in zip(pytree.tree_leaves(got), pytree.tree_leaves(wanted), strict=True):
            assert one.shape == other.shape
            assert one.isfinite().all()


def _assert_as_offered(changed: nn.Module, offers: Sequence[Offer], network: nn.Module) -> None:
    """Each layer has the channels of the offers; where several name it, what each takes adds up."""
    removed = frozenset[str]().union(*(offer.removed for offer in offers))
    paths = {path for offer in offers for path in (*offer.outputs, *offer.inputs)} - removed
    for path in paths:
        outputs, inputs = _channels(network, path)
        outputs -= sum(outputs - offer.outputs.get(path, outputs) for offer in offers)
        inputs -= sum(inputs - offer.inputs.get(path, inputs) for offer in offers)
        assert _channels(changed, path) == (outputs, inputs), path
    for path, shapes in ((p, s) for offer in offers for p, s in offer.replaced.items()):
        owner = changed.get_submodule(path)
        layers = [module for module in owner.modules() if hasattr(module, "weight")]
        found = [(_channels(layer, "")[::-1]) for layer in layers]
        assert found == [(shape.inputs, shape.outputs) for shape in shapes], path


def _channels(network: nn.Module, path: str) -> tuple[int, int]:
    """What a layer puts out and reads, from the shape of its weight."""
    packed = dict(network.named_parameters()).get(f"{path}_weight")
    if packed is not None:
        return packed.shape[0], packed.shape[1]
    layer = network.get_submodule(path)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    first, second = weight.shape[:2]
    if isinstance(layer, nn.Embedding):
        return second, first
    groups = getattr(layer, "groups", 1)
    is_transposed = getattr(layer, "transposed", False)
    return (second * groups, first) if is_transposed else (first, second * groups)


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _macs(program: Program) -> int:
    return sum(operator.macs for operator in program.operators)


def _assert_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key
