"""A reference becomes a workload, or is refused in one line that says where and why."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from zoo import ZOO

from edgebuild.cache import Cache
from edgebuild.inputs import workload_file
from edgebuild.inputs.workload_check import check_workload
from edgebuild.inputs.workload_file import load_workload
from edgebuild.samples import store_split
from edgebuild.vocabulary.errors import InvalidTarget, InvalidWorkload, MissingPackage
from edgebuild.vocabulary.workload import Workload

FIXTURES = Path(__file__).parents[1] / "workloads"


def fixture(name: str) -> str:
    return str(FIXTURES / f"{name}.py")


def tiny(**changes: Any) -> Workload:
    """A sound workload, but for the changes."""
    workload = Workload(
        name="tiny",
        network=nn.Linear(4, 2).eval(),
        example=(torch.ones(1, 4),),
        calibration=[],
        validation=[],
        test=[],
    )
    return dataclasses.replace(workload, **changes)


def refusal(
    act: Callable[[], object], error: type[InvalidWorkload | MissingPackage] = InvalidWorkload
) -> str:
    """The one line that an act is refused with."""
    with pytest.raises(error) as caught:
        act()
    message = str(caught.value)
    assert type(caught.value) is error
    assert "\n" not in message
    assert "  " not in message
    return message


# ---- what can be loaded


@pytest.mark.parametrize("name", ["valid", "valid-with-sibling"])
def test_a_file_is_loaded_and_passes_every_check(name: str) -> None:
    workload = load_workload(fixture(name))
    check_workload(workload)
    assert workload.name == "tiny"


def test_a_function_can_be_named() -> None:
    check_workload(load_workload(f"{fixture('valid')}:renamed"))


def test_a_relative_path_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FIXTURES)
    assert load_workload("valid.py").name == "tiny"
    assert load_workload("valid.py:renamed").name == "tiny"


def test_a_module_is_found_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "of_this_test"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "models.py").write_text((FIXTURES / "valid.py").read_text())
    monkeypatch.chdir(tmp_path)
    check_workload(load_workload("of_this_test.models:renamed"))
    assert load_workload("of_this_test.models:workload").name == "tiny"


def test_a_folder_with_a_configuration_is_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(workload_file, "load_checkpoint", lambda folder: tiny(name=folder.name))
    assert load_workload(str(tmp_path)).name == tmp_path.name


def test_loading_leaves_the_search_path_as_it_was() -> None:
    before = list(sys.path)
    load_workload(fixture("valid-with-sibling"))
    refusal(lambda: load_workload(fixture("raises-on-import")))
    assert sys.path == before


def test_a_file_takes_no_other_modules_place(tmp_path: Path) -> None:
    file = tmp_path / "torch.py"
    file.write_text("def workload():\n    return 1\n")
    assert "returns an int" in refusal(lambda: load_workload(str(file)))
    assert sys.modules["torch"] is torch


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text("def workload():\n    return 1\n")
    refusal(lambda: load_workload(str(file)))
    file.write_text((FIXTURES / "valid.py").read_text())
    assert load_workload(str(file)).name == "tiny"


def test_importing_the_door_does_not_import_torch() -> None:
    code = "import sys, edgebuild.inputs.workload_file; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- files that cannot be loaded


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no-workload-function", "has no function 'workload'. Did you mean 'worload'?"),
        ("no-function-at-all", "has no function 'workload'. Write `def workload() -> Workload:`."),
        ("workload-is-no-function", "'workload' is an int, not a function"),
        ("needs-arguments", "workload(folder) needs arguments"),
        ("returns-none", "workload() returns nothing: let it return a Workload"),
        ("returns-network", "workload() returns a Linear: let it return a Workload"),
        ("function-raises", "function-raises.py:9: KeyError: 'size'"),
        ("fails-in-library", "fails-in-library.py:7: ValueError: cannot reshape array of size 4"),
        ("import-error", "import-error.py:3: ImportError: cannot import name 'tau_squared'"),
        ("raises-on-import", "raises-on-import.py:3: ValueError: invalid literal for int()"),
        ("exits-on-import", "exits-on-import.py:5: ends Python (SystemExit): put what runs as"),
        ("syntax-error", "syntax-error.py:3: SyntaxError: 'return' outside function"),
        ("imports-syntax-error", "workloads/syntax-error.py:3: SyntaxError: 'return' outside"),
        ("missing-submodule", "missing-submodule.py:3: ModuleNotFoundError: No module named"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_refused(name: str, said: str) -> None:
    message = refusal(lambda: load_workload(fixture(name)))
    assert said in message
    assert str(FIXTURES) in message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "needs-missing-package",
            "which is not installed. Install it, for example with: pip install no_such_package",
        ),
        ("needs-missing-package-with-hint", "needs x; install it: pip install 'x[all]'"),
        ("misspelled-sibling", "Did you mean 'sibling_of_valid'?"),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_line(name: str, said: str) -> None:
    message = refusal(lambda: load_workload(fixture(name)), MissingPackage)
    assert said in message
    assert f"{name}.py:" in message


def test_an_interrupt_is_no_defect_of_the_file() -> None:
    with pytest.raises(KeyboardInterrupt):
        load_workload(fixture("interrupted"))


def test_our_own_errors_pass_through_the_users_file(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text(
        "from edgebuild.vocabulary.errors import InvalidTarget\n"
        "def workload():\n    raise InvalidTarget('as it was')\n"
    )
    with pytest.raises(InvalidTarget, match=r"^as it was$"):
        load_workload(str(file))


@pytest.mark.parametrize(
    "text", [b"\xff\xfe", b"x = '\x00'", b"def workload(:\n", b"if True:\nx = 1\n", b"(" * 500]
)
def test_a_file_that_is_no_python_is_refused(text: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_bytes(text)
    assert str(file) in refusal(lambda: load_workload(str(file)))


# ---- references that name nothing


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("", "'' names no workload: give file.py, file.py:function"),
        (":workload", "names no workload"),
        ("valid.py:", "names no workload"),
        ("valid.py:no function", "names no workload"),
        ("vaild.py", "there is no file vaild.py. Did you mean 'valid.py'?"),
        ("vaild.py:renamed", "there is no file vaild.py. Did you mean 'valid.py'?"),
        ("train-mode", "there is no file train-mode. Did you mean 'train-mode.py'?"),
        ("zzz", "there is no file zzz. Else give file.py, file.py:function"),
        ("valid.py:renamd", "valid.py has no function 'renamd'. Did you mean 'renamed'?"),
        ("nowhere/valid.py", "the folder nowhere does not exist"),
        ("model.onnx", "this version builds from PyTorch networks only: give a workload file"),
        ("zzz:workload", "there is no module 'zzz'"),
        ("sibling_of_vaild:tiny", "Did you mean 'sibling_of_valid'?"),
        ("json.no_such_module:workload", "the package 'json' has no module 'json.no_such_module'"),
        ("json:workload", "json has no function 'workload'"),
        ("..:workload", "there is no module"),
    ],
)
def test_a_reference_that_names_nothing_is_refused_with_the_nearest(
    reference: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FIXTURES)
    assert said in refusal(lambda: load_workload(reference))


def test_a_folder_that_is_no_checkpoint_is_refused() -> None:
    message = refusal(lambda: load_workload(str(FIXTURES)))
    assert "has no config.json" in message
    assert f"a workload file, such as {FIXTURES}" in message


def test_a_file_of_weights_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.touch()
    assert "weights.pt is no Python file" in refusal(lambda: load_workload(str(file)))


def test_a_module_that_fails_is_refused_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "failing_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "models.py").write_text("\nimport failing_package.parts\n")
    (package / "parts.py").write_text("\n\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    message = refusal(lambda: load_workload("failing_package.models:workload"))
    assert message == f"{package / 'parts.py'}:3: ZeroDivisionError: division by zero"


# ---- workloads that cannot be built from


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no-name", "the workload's name is ' '"),
        ("train-mode", "the network is in train mode: call .eval() on the network"),
        ("train-mode-of-one-layer", "the layer '1' of the network is in train mode: call .eval()"),
        ("nan-weights", "the network's parameter 'weight' holds NaN or infinite values"),
        ("infinite-buffer", "the network's buffer '1.running_var' holds NaN or infinite values"),
        ("meta-weights", "'weight' is on the meta device, without data: load its weights"),
        ("lazy-weights", "parameter 'weight' has no shape yet: run the network once"),
        ("network-class", "the network is the class Linear: give an instance of it"),
        ("function-as-network", "the network is a builtin_function_or_method: give an nn.Module"),
        ("network-raises", "does not run on the example: RuntimeError: the cable ("),
        ("nan-output", "the network's output holds NaN or infinite values on the example"),
        ("text-output", "the network's output 'best' is a str: return a tensor, or a tuple"),
        ("empty-output", "the network returns an empty tuple"),
        ("scalar-output", "the network's output has no dimensions: keep the batch dimension"),
        ("bare-tensor-example", "the example is a bare tensor: give a tuple, as (tensor,)"),
        ("list-example", "the example is a list: give a tuple of tensors"),
        ("empty-example", "the example is empty"),
        ("text-in-example", "the example's input 0 is a str: give a tensor"),
        ("scalar-example", "the example's input 0 has no dimensions"),
        ("batch-of-two-example", "input 0 has the shape (2, 4), so a batch of 2: give one sample"),
        ("nan-example", "the example's input 0 holds NaN or infinite values"),
        ("bfloat16-example", "is torch.bfloat16, which numpy does not have"),
        ("example-of-wrong-size", "does not run on the example: RuntimeError: mat1 and mat2"),
        ("score-is-text", "the score is a str: give a function (outputs, labels) -> float"),
    ],
)
def test_a_workload_that_cannot_be_built_from_is_refused(name: str, said: str) -> None:
    workload = load_workload(fixture(name))
    message = refusal(lambda: check_workload(workload))
    assert said in message
    assert name == "no-name" or message.startswith("workload 'tiny': ")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("empty-test-split", "the test split is empty"),
        ("mismatched-shape", "test sample 1, input 0 has the shape (1, 5), the example (1, 4)"),
        ("mismatched-labels", "test sample 1 has 2 labels for 1 inputs"),
        ("some-labels", "the test split has 1 labels for 2 samples"),
        ("wrong-dtype", "test sample 0, input 0 is float64, the example float32"),
        ("one-shot-generator", "the test split can be read only once"),
        ("bare-inputs", "test sample 0 is of type Tensor: give a pair (inputs, label)"),
        ("too-many-inputs", "test sample 0 has 2 inputs, the example 1"),
        ("text-inputs", "test sample 0, input 0 is of type str: give a tensor"),
        ("nan-samples", "test sample 0, input 0 holds NaN or infinite values"),
        ("split-is-a-number", "the test split is of type int: give a list or a Dataset"),
        ("changing-labels", "labels changes from int64 (1,) to int64 (2,) between samples"),
    ],
)
def test_a_split_that_cannot_be_stored_is_refused(name: str, said: str, tmp_path: Path) -> None:
    workload = load_workload(fixture(name))
    check_workload(workload)
    cache = Cache(tmp_path)
    store_split(workload.calibration, workload.example, "calibration", cache)
    message = refusal(lambda: store_split(workload.test, workload.example, "test", cache))
    assert said in message


@pytest.mark.parametrize("value", [None, nn.Linear(4, 2), ("tiny",), Workload])
def test_what_is_no_workload_is_refused(value: object) -> None:
    assert "is no workload: give an edgebuild Workload" in refusal(lambda: check_workload(value))


@pytest.mark.parametrize("name", [None, "", 3])
def test_a_workload_needs_a_name(name: object) -> None:
    assert "the workload's name is" in refusal(lambda: check_workload(tiny(name=name)))


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_network_of_the_zoo_passes(name: str) -> None:
    specimen = ZOO[name]()
    check_workload(tiny(network=specimen.network, example=specimen.example))


class Masked(nn.Module):
    """Attention that must not look ahead, and a row of flags."""

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("flags", torch.ones(4, dtype=torch.bool))

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        return torch.softmax(row + self.mask, dim=-1)


def test_an_attention_mask_may_hold_minus_infinity() -> None:
    mask = torch.tensor([0.0, 0.0, -torch.inf, -torch.inf])
    check_workload(tiny(network=Masked(mask).eval()))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_buffer_may_hold_neither_nan_nor_infinity(value: float) -> None:
    network = Masked(torch.tensor([0.0, 0.0, 0.0, value])).eval()
    assert "buffer 'mask' holds NaN" in refusal(lambda: check_workload(tiny(network=network)))


class Overwriting(nn.Module):
    """Writes into its input."""

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        return row.zero_() + 1


def test_checking_changes_nothing() -> None:
    example = torch.ones(1, 4)
    check_workload(tiny(network=Overwriting().eval(), example=(example,)))
    assert bool((example == 1).all())


def test_the_reason_of_the_network_is_kept_as_the_cause() -> None:
    with pytest.raises(InvalidWorkload) as caught:
        check_workload(load_workload(fixture("network-raises")))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_workload_without_a_score_passes() -> None:
    check_workload(tiny(score=None))


def test_notices_are_named() -> None:
    message = refusal(lambda: check_workload(tiny(notices=["MIT"])))
    assert "the notices are a list: give a dict from name to text" in message


class Unbatched(nn.Module):
    """Runs on one sample without a batch dimension, as torch's own layers do."""

    def __init__(self, rest: nn.Module) -> None:
        super().__init__()
        self.layer, self.rest = nn.Conv2d(1, 4, 3), rest

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.rest(self.layer(image))  # type: ignore[no-any-return]


@pytest.mark.parametrize("rest", [nn.Identity(), nn.BatchNorm2d(4)])
def test_an_example_without_a_batch_dimension_is_told_to_get_one(rest: nn.Module) -> None:
    network = Unbatched(rest).eval()
    message = refusal(lambda: check_workload(tiny(network=network, example=(torch.ones(1, 8, 8),))))
    assert "the example, of shape (1, 8, 8), lacks: give tensor.unsqueeze(0)" in message
    check_workload(tiny(network=network, example=(torch.ones(1, 1, 8, 8),)))
    three = (torch.ones(3, 8, 8),)
    message = refusal(lambda: check_workload(tiny(network=network, example=three)))
    assert "or tensor.unsqueeze(0), if this has no batch dimension" in message


def test_an_output_without_the_batch_in_front_is_refused() -> None:
    class WithState(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.GRU(4, 8, num_layers=2, batch_first=True)

        def forward(self, series: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            outputs, state = self.layer(series)
            return outputs, state

    split = [(torch.zeros(1, 3, 4), None)]
    given = Workload("states", WithState().eval(), (torch.zeros(1, 3, 4),), split, split, split)
    with pytest.raises(InvalidWorkload, match="output 1 has the shape .*: return it transposed"):
        check_workload(given)
