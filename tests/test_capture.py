"""A network is captured with every layer, its work, and a name for what it computes."""

from __future__ import annotations

import copy
import functools
import io
import logging
from collections import Counter
from collections.abc import Callable
from math import prod

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, Specimen

from edgebuild.capture import capture
from edgebuild.vocabulary.errors import NotExportable
from edgebuild.vocabulary.precision import LayerKind
from edgebuild.vocabulary.program import Program, Site

LAYERS = nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.RNNBase | nn.Embedding
ROW = torch.linspace(-1, 1, 4)[None]


@functools.cache
def specimen(name: str) -> Specimen:
    return ZOO[name]()


@functools.cache
def captured(name: str) -> Program:
    return capture(specimen(name).network, specimen(name).example)


class Calls(nn.Module):
    """A network whose forward is a function of its layer and its inputs."""

    def __init__(self, function: Callable[..., object], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.function = function
        self.layer = layer or linear()

    def forward(self, *inputs: Tensor) -> object:
        return self.function(self.layer, *inputs)


def linear(seed: int = 0) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(4, 4)


def fingerprint(function: Callable[..., object], layer: nn.Module | None = None) -> str:
    return capture(Calls(function, layer).eval(), (ROW,)).fingerprint


# ---- sites


def kind_of(layer: nn.Module) -> LayerKind:
    """What a layer is, by its class."""
    match layer:
        case nn.Conv1d() | nn.Conv2d():
            is_depthwise = layer.groups == layer.in_channels > 1
            return LayerKind.DEPTHWISE if is_depthwise else LayerKind.CONVOLUTION
        case nn.ConvTranspose2d():
            return LayerKind.TRANSPOSED
        case nn.RNNBase():
            return LayerKind.RECURRENT
        case nn.Embedding():
            return LayerKind.EMBEDDING
    return LayerKind.LINEAR


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_layer_is_a_site_of_its_kind(name: str) -> None:
    network = specimen(name).network
    layers = {path: layer for path, layer in network.named_modules() if isinstance(layer, LAYERS)}
    wanted = {Site(path, kind_of(layer)) for path, layer in layers.items()}
    # Attention keeps its three projections in one weight of its own.
    for path, module in network.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            wanted.add(Site(f"{path}.in_proj", LayerKind.LINEAR))
    assert set(captured(name).sites) == wanted
    assert len(captured(name).sites) == len(wanted)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_site_has_its_nodes_in_the_graph(name: str) -> None:
    program = captured(name)
    known = {node.name for node in program.exported.graph.nodes}
    assert set(program.nodes) == set(program.sites)
    assert all(nodes and known.issuperset(nodes) for nodes in program.nodes.values())
    owned = Counter(node for nodes in program.nodes.values() for node in nodes)
    assert set(owned.values()) == {1}


def test_sites_stand_in_order_of_execution() -> None:
    layers = nn.Sequential(linear(), linear(1))
    network = Calls(lambda pair, row: pair[0](pair[1](row)), layers)
    paths = [site.path for site in capture(network.eval(), (ROW,)).sites]
    assert paths == ["layer.1", "layer.0"]


def test_a_layer_that_is_called_twice_is_one_site() -> None:
    program = capture(Calls(lambda layer, row: layer(layer(row))).eval(), (ROW,))
    (site,) = program.sites
    assert len(program.nodes[site]) == 2


def test_a_layer_that_is_never_called_is_no_site() -> None:
    assert capture(Calls(lambda _, row: row + 1).eval(), (ROW,)).sites == ()


def test_a_layer_alone_is_a_site() -> None:
    assert capture(linear().eval(), (ROW,)).sites == (Site("weight", LayerKind.LINEAR),)


def test_a_convolution_of_gray_images_is_not_depthwise() -> None:
    program = capture(nn.Conv2d(1, 8, 3).eval(), (torch.zeros(1, 1, 8, 8),))
    assert [site.kind for site in program.sites] == [LayerKind.CONVOLUTION]


class LearnedStart(nn.Module):
    """A GRU whose first state is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(1, 1, 8))
        self.layer = nn.GRU(4, 8, batch_first=True)

    def forward(self, series: Tensor) -> Tensor:
        states: Tensor = self.layer(series, self.start)[0]
        return states


def test_a_recurrent_layer_is_not_named_by_its_first_state() -> None:
    program = capture(LearnedStart().eval(), (torch.zeros(1, 6, 4),))
    assert program.sites == (Site("layer", LayerKind.RECURRENT),)


class TwoQueries(nn.Module):
    """A layer `query` and a weight `query_weight`."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 4)
        self.query_weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, row: Tensor) -> Tensor:
        first: Tensor = self.query(row)
        return first @ self.query_weight


def test_two_weights_are_two_sites() -> None:
    assert len(capture(TwoQueries().eval(), (ROW,)).sites) == 2


# ---- work


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv1d(3, 8, 5, padding=2), (1, 3, 20), 8 * 20 * 3 * 5),
        (nn.Conv2d(3, 8, 3), (1, 3, 10, 12), 8 * 8 * 10 * 3 * 9),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), (1, 3, 10, 12), 8 * 5 * 6 * 3 * 9),
        (nn.Conv2d(3, 8, 3, padding="same"), (1, 3, 10, 12), 8 * 10 * 12 * 3 * 9),
        (nn.Conv2d(8, 8, 3, dilation=2), (1, 8, 9, 9), 8 * 5 * 5 * 8 * 9),
        (nn.Conv2d(8, 8, 3, groups=8), (1, 8, 6, 6), 8 * 4 * 4 * 9),
        (nn.Conv2d(8, 16, 1, groups=4), (1, 8, 6, 6), 16 * 36 * 2),
        (nn.Conv3d(2, 4, 3), (1, 2, 5, 5, 5), 4 * 27 * 2 * 27),
        (nn.ConvTranspose2d(6, 4, 2, stride=2), (1, 6, 5, 5), 25 * 6 * 4 * 4),
        (nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2), (1, 6, 5, 5), 25 * 6 * 2 * 4),
        (nn.Linear(16, 5), (1, 16), 80),
        (nn.Linear(16, 5), (1, 7, 16), 7 * 80),
    ],
)
def test_the_work_of_a_layer_is_its_formula(
    layer: nn.Module, shape: tuple[int, ...], macs: int
) -> None:
    program = capture(layer.eval(), (torch.zeros(shape),))
    (operator,) = [operator for operator in program.operators if operator.site]
    assert operator.macs == macs
    assert operator.weights == sum(weight.numel() for weight in layer.parameters())
    assert operator.activations == prod(shape) + layer(torch.zeros(shape)).numel()


@pytest.mark.parametrize(
    ("left", "right", "macs"),
    [((1, 3, 4), (1, 4, 5), 60), ((1, 2, 3, 4), (1, 2, 4, 5), 120), ((1, 4), (4, 5), 20)],
)
def test_the_work_of_a_product_of_activations(
    left: tuple[int, ...], right: tuple[int, ...], macs: int
) -> None:
    network = Calls(lambda _, one, other: one @ other).eval()
    program = capture(network, (torch.zeros(left), torch.zeros(right)))
    assert sum(operator.macs for operator in program.operators) == macs


def test_attention_costs_its_two_products() -> None:
    def attend(_: nn.Module, tokens: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

    program = capture(Calls(attend).eval(), (torch.zeros(1, 2, 5, 8),))
    assert sum(operator.macs for operator in program.operators) == 2 * (2 * 5 * 5 * 8)


@pytest.mark.parametrize(("kind", "gates"), [(nn.GRU, 3), (nn.LSTM, 4), (nn.RNN, 1)])
def test_a_recurrent_layer_meets_its_weights_at_every_step(
    kind: type[nn.RNNBase], gates: int
) -> None:
    layer = kind(16, 32, batch_first=True).eval()  # type: ignore[call-arg,arg-type]
    program = capture(layer, (torch.zeros(1, 12, 16),))
    macs = sum(operator.macs for operator in program.operators)
    products = 12 * gates * 32 * (16 + 32)
    assert products <= macs <= products * 1.05  # the two biases are counted too


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_work_of_every_layer_of_the_zoo_is_its_formula(name: str) -> None:
    network, example = specimen(name).network, specimen(name).example
    wanted: Counter[str] = Counter()

    def note(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            weight = layer.weight
            assert isinstance(weight, Tensor)
            turned = isinstance(layer, nn.ConvTranspose2d)
            wanted[path] += (inputs[0] if turned else output).numel() * prod(weight.shape[1:])

        return hook

    counted = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
    hooks = [
        layer.register_forward_hook(note(path))
        for path, layer in network.named_modules()
        if isinstance(layer, counted)
    ]
    try:
        with torch.no_grad():
            network(*example)
    finally:
        for hook in hooks:
            hook.remove()
    found: Counter[str] = Counter()
    for operator in captured(name).operators:
        if operator.site and operator.site.path in wanted:
            found[operator.site.path] += operator.macs
    assert wanted
    assert found == wanted


def test_a_view_costs_nothing() -> None:
    program = capture(Calls(lambda _, row: row.reshape(2, 2).T[:, None]).eval(), (ROW,))
    assert program.operators == ()


def test_what_runs_inside_the_layer_before_moves_nothing() -> None:
    network = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU()).eval()
    convolution, *fused = capture(network, (torch.zeros(1, 2, 3, 3),)).operators
    assert convolution.activations == 36
    assert [(operator.weights, operator.activations) for operator in fused] == [(0, 0), (0, 0)]


# ---- the fingerprint


@pytest.mark.parametrize("name", sorted(ZOO))
def test_an_equal_network_has_an_equal_fingerprint(name: str) -> None:
    again = capture(copy.deepcopy(specimen(name).network), specimen(name).example)
    assert again.fingerprint == captured(name).fingerprint


def test_every_network_of_the_zoo_has_its_own_fingerprint() -> None:
    assert len({captured(name).fingerprint for name in ZOO}) == len(ZOO)


def test_the_values_of_the_example_do_not_matter() -> None:
    network = linear().eval()
    one, other = (capture(network, (row,)).fingerprint for row in (ROW, ROW * 3))
    assert one == other


def base(layer: nn.Module, row: Tensor) -> Tensor:
    return torch.relu(layer(row)) * 2.0 + torch.tensor([1.0, 2.0, 3.0, 4.0])


def test_a_weight_changes_the_fingerprint() -> None:
    layer = linear()
    before = fingerprint(base, layer)
    with torch.no_grad():
        layer.weight[3, 3] = torch.nextafter(layer.weight[3, 3], torch.tensor(9.0))
    assert fingerprint(base, layer) != before


def test_a_buffer_changes_the_fingerprint() -> None:
    norm = nn.BatchNorm1d(4).eval()
    before = capture(norm, (ROW,)).fingerprint
    assert norm.running_mean is not None
    norm.running_mean[0] = 1
    assert capture(norm, (ROW,)).fingerprint != before


def test_a_constant_an_operator_a_shape_or_a_type_changes_the_fingerprint() -> None:
    found = [
        fingerprint(base),
        fingerprint(lambda layer, row: torch.relu(layer(row)) * 3.0 + torch.arange(1.0, 5.0)),
        fingerprint(lambda layer, row: torch.relu(layer(row)) * 2.0 + torch.ones(4)),
        fingerprint(lambda layer, row: torch.tanh(layer(row)) * 2.0 + torch.ones(4)),
        fingerprint(lambda layer, row: torch.tanh(layer(row)) * 2.0 + 2 * torch.ones(4)),
        fingerprint(lambda layer, row: layer(row)),
        fingerprint(lambda layer, row: layer(row)[:, :3]),
        fingerprint(lambda layer, row: layer(row).double()),
        fingerprint(lambda layer, row: layer(row).half()),
        fingerprint(lambda layer, row: layer(row), linear(1)),
        capture(linear().eval(), (ROW,)).fingerprint,
        capture(linear().eval(), (ROW[:, None],)).fingerprint,
    ]
    assert len(set(found)) == len(found)


def scaled_under_autocast(factor: float) -> Callable[..., Tensor]:
    def forward(layer: nn.Module, row: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(row) * factor  # type: ignore[no-any-return]

    return forward


def scaled_with_gradients(factor: float) -> Callable[..., Tensor]:
    def forward(layer: nn.Module, row: Tensor) -> Tensor:
        with torch.enable_grad():
            scaled: Tensor = layer(row) * factor
        return scaled + 1

    return forward


def scaled_if_positive(factor: float) -> Callable[..., object]:
    def forward(_: nn.Module, row: Tensor) -> object:
        return torch.cond(row.sum() > 0, lambda x: x * factor, lambda x: x - 1, (row,))

    return forward


@pytest.mark.parametrize(
    "scaled", [scaled_under_autocast, scaled_with_gradients, scaled_if_positive]
)
def test_a_constant_inside_a_block_changes_the_fingerprint(
    scaled: Callable[[float], Callable[..., object]],
) -> None:
    assert fingerprint(scaled(2.0)) != fingerprint(scaled(3.0))


def test_the_names_of_the_outputs_change_the_fingerprint() -> None:
    one = fingerprint(lambda layer, row: {"a": layer(row), "b": row + 1})
    assert fingerprint(lambda layer, row: {"b": layer(row), "a": row + 1}) != one


# ---- inputs and outputs


def test_one_tensor_given_twice_is_two_inputs() -> None:
    program = capture(Calls(lambda layer, one, other: layer(one) - other).eval(), (ROW, ROW))
    assert len(program.exported.graph_signature.user_inputs) == 2
    module = program.exported.module()
    assert not torch.equal(module(ROW, ROW), module(ROW, ROW + 1))


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_program_computes_what_the_network_computes(name: str) -> None:
    network, example = specimen(name).network, specimen(name).example
    with torch.no_grad():
        wanted = network(*example)
        found = captured(name).exported.module()(*example)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ["dict-output", "tuple-output", "vit"])
def test_flat_outputs_get_their_structure_back(name: str) -> None:
    network, example = specimen(name).network, specimen(name).example
    with torch.no_grad():
        wanted = network(*example)
    flat = [wanted] if isinstance(wanted, Tensor) else list(torch.utils._pytree.tree_leaves(wanted))
    restored = captured(name).restore(iter(flat))
    assert type(restored) is type(wanted)
    torch.testing.assert_close(restored, wanted)


def test_capturing_leaves_the_network_and_the_example_as_they_were() -> None:
    network, row = Calls(base, linear()).eval(), ROW.clone().requires_grad_()
    state = copy.deepcopy(network.state_dict())
    capture(network, (row,))
    torch.testing.assert_close(network.state_dict(), state, rtol=0, atol=0)
    assert not network.training
    assert row.requires_grad
    assert torch.equal(row.detach(), ROW)


# ---- what cannot be captured


def branches(_: nn.Module, row: Tensor) -> Tensor:
    return row if row.sum() > 0 else -row


def loops(_: nn.Module, row: Tensor) -> Tensor:
    while row.sum() < 9:
        row = row + 1
    return row


def prints_numbers(_: nn.Module, row: Tensor) -> Tensor:
    return row * float(row.numpy().max())


def fails(_: nn.Module, row: Tensor) -> Tensor:
    raise RuntimeError("the cable\nis not connected")


@pytest.mark.parametrize("forward", [branches, loops, prints_numbers, fails])
def test_what_depends_on_data_cannot_be_captured(forward: Callable[..., object]) -> None:
    with pytest.raises(
        NotExportable, match=r"^torch\.export cannot capture the network: "
    ) as error:
        capture(Calls(forward).eval(), (ROW,))
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is not None


def cuts(_: nn.Module, row: Tensor) -> Tensor:
    return row[:, : int(row.sum().item())]


@pytest.mark.parametrize("forward", [branches, loops, cuts])
def test_the_users_line_is_named_and_torch_says_nothing_beside_it(
    forward: Callable[..., object], capfd: pytest.CaptureFixture[str]
) -> None:
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    logger.addHandler(handler)
    try:
        with pytest.raises(NotExportable, match=r" at .*test_capture\.py:\d+: return "):
            capture(Calls(forward).eval(), (ROW,))
        assert capfd.readouterr().err + said.getvalue() == ""
        logger.warning("heard")
        assert said.getvalue() == "heard\n"
    finally:
        logger.removeHandler(handler)


def test_what_the_network_prints_itself_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    def speaks(_: nn.Module, row: Tensor) -> Tensor:
        print("as it likes")
        return row + 1

    capture(Calls(speaks).eval(), (ROW,))
    assert "as it likes" in capfd.readouterr().out


def picks(_: nn.Module, row: Tensor) -> Tensor:
    return row[row > 0]


def test_shapes_that_depend_on_data_are_refused_by_the_operator() -> None:
    with pytest.raises(NotExportable, match=r"the shape of what aten\.index.* depends on the data"):
        capture(Calls(picks).eval(), (ROW,))


def fails_silently(_: nn.Module, row: Tensor) -> Tensor:
    raise AssertionError


def test_an_error_without_a_message_is_told_by_its_type() -> None:
    with pytest.raises(NotExportable, match="AssertionError"):
        capture(Calls(fails_silently).eval(), (ROW,))
