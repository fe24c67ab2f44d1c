"""The door for workloads: finds what `MODEL` names, runs the user's file, checks what it returns.

Whatever goes wrong in the user's own code is told as theirs: one line, with its file and line.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgebuild.inputs.huggingface import load_checkpoint
from edgebuild.vocabulary.errors import (
    EdgebuildError,
    InvalidWorkload,
    MissingPackage,
    did_you_mean,
)
from edgebuild.vocabulary.workload import Workload

if TYPE_CHECKING:
    import torch

FUNCTION = "workload"
WAYS = "give file.py, file.py:function, package.module:function or a checkpoint folder"


def load_workload(reference: str) -> Workload:
    """The workload that a reference names; `check_workload` says whether it can be built from.

    Args:
        reference: `file.py` (its function `workload`), `file.py:function`,
            `package.module:function`, or a folder with a Hugging Face checkpoint.

    Raises:
        InvalidWorkload: nothing there, or code that cannot be imported or does not return a
            workload.
        MissingPackage: the workload imports a package that is not installed.
    """
    source, function = _split(reference)
    path = Path(source)
    if path.suffix == ".onnx":
        raise InvalidWorkload(
            f"{path} is an ONNX file, and this version builds from PyTorch networks only: "
            "give a workload file that returns the network it was exported from"
        )
    if path.is_dir() and source == reference:
        return _load_folder(path)
    if path.suffix == ".py" or path.is_file() or ":" not in reference or len(path.parts) > 1:
        return _load_file(path, function)
    return _load_module(source, function)


# ---- finding it


def _split(reference: str) -> tuple[str, str]:
    """The file, folder or module, and the function."""
    if ":" not in reference or Path(reference).exists():
        source, function = reference, FUNCTION
    else:
        source, _, function = reference.rpartition(":")
    if not source.strip() or not function.isidentifier():
        raise InvalidWorkload(f"{reference!r} names no workload: {WAYS}")
    return source, function


def _load_folder(folder: Path) -> Workload:
    if (folder / "config.json").is_file():
        return load_checkpoint(folder)
    files = sorted(file.name for file in folder.glob("*.py"))
    inside = f", such as {folder / files[0]}" if files else ""
    raise InvalidWorkload(
        f"the folder {folder} has no config.json, so it is no Hugging Face checkpoint: "
        f"give one, or a workload file{inside}"
    )


def _load_file(path: Path, function: str) -> Workload:
    _require_python_file(path)
    real = path.resolve()
    # A name of its own: a file called torch.py or digits.py must not take a module's place.
    name = f"_edgebuild_workload_{hashlib.sha256(str(real).encode()).hexdigest()[:16]}"

    def load() -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, real)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # where dataclasses look up their annotations
        spec.loader.exec_module(module)
        return module

    def is_users(file: str) -> bool:
        return Path(file).resolve() == real

    with _on_path(real.parent):
        with _users_code(str(path), is_users):
            try:
                module = load()
            except BaseException:
                sys.modules.pop(name, None)
                raise
        return _call(module, function, str(path), is_users)


def _require_python_file(path: Path) -> None:
    if path.is_file():
        if path.suffix == ".py":
            return
        raise InvalidWorkload(
            f"{path} is no Python file: give a workload file that loads it, "
            f"with a function {FUNCTION}() that returns a Workload"
        )
    if not path.parent.is_dir():
        raise InvalidWorkload(f"there is no file {path}: the folder {path.parent} does not exist")
    wanted = path.name if path.suffix == ".py" else f"{path.name}.py"
    nearest = did_you_mean(wanted, (file.name for file in path.parent.glob("*.py")))
    raise InvalidWorkload(f"there is no file {path}.{nearest or f' Else {WAYS}.'}")


def _load_module(name: str, function: str) -> Workload:
    here = Path.cwd()
    with _on_path(here):
        # Looking for the outermost package imports nothing.
        package = name.partition(".")[0]
        spec = _spec(package)
        if spec is None or not all(part.isidentifier() for part in name.split(".")):
            known = {file.stem for file in here.glob("*.py")}
            known |= {folder.name for folder in here.iterdir() if folder.is_dir()}
            raise InvalidWorkload(
                f"there is no module {package!r}, neither in {here} nor installed."
                f"{did_you_mean(package, known) or f' Else {WAYS}.'}"
            )
        roots = [Path(root).resolve() for root in spec.submodule_search_locations or ()]
        roots += [Path(spec.origin).resolve()] if spec.origin else []

        def is_users(file: str) -> bool:
            return any(Path(file).resolve().is_relative_to(root) for root in roots)

        with _users_code(name, is_users):
            try:
                module = importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                    raise
                raise InvalidWorkload(
                    f"the package {package!r} has no module {error.name!r}: {WAYS}"
                ) from error
        return _call(module, function, name, is_users)


def _spec(package: str) -> Any:
    try:
        return importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """Lets the user's modules import their neighbors."""
    entry = str(folder)
    importlib.invalidate_caches()
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


# ---- running the user's code


def _call(module: ModuleType, name: str, where: str, is_users: Callable[[str], bool]) -> Workload:
    function = _function(module, name, where)
    with _users_code(where, is_users):
        made = function()
    if not isinstance(made, Workload):
        found = "nothing" if made is None else _a(made)
        raise InvalidWorkload(f"{where}: {name}() returns {found}: let it return a Workload")
    return made


def _function(module: ModuleType, name: str, where: str) -> Callable[[], Any]:
    known = [key for key, value in vars(module).items() if inspect.isroutine(value)]
    if not hasattr(module, name):
        write = f" Write `def {name}() -> Workload:`." if name == FUNCTION else ""
        raise InvalidWorkload(
            f"{where} has no function {name!r}.{did_you_mean(name, known) or write}"
        )
    function = getattr(module, name)
    if not callable(function):
        raise InvalidWorkload(
            f"{where}: {name!r} is {_a(function)}, not a function: "
            f"write `def {name}() -> Workload:`"
        )
    needed = _required_parameters(function)
    if needed:
        raise InvalidWorkload(
            f"{where}: {name}({', '.join(needed)}) needs arguments, and is called without any: "
            "give them defaults"
        )
    found: Callable[[], Any] = function
    return found


def _required_parameters(function: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]


@contextmanager
def _users_code(where: str, is_users: Callable[[str], bool]) -> Iterator[None]:
    """Tells whatever is raised inside as the user's, with the line of theirs that led there."""
    try:
        yield
    except EdgebuildError:
        raise
    except ModuleNotFoundError as error:
        raise _missing_module(error, _place(error, where, is_users)) from error
    except SystemExit as error:
        raise InvalidWorkload(
            f"{_place(error, where, is_users)}: ends Python (SystemExit): "
            'put what runs as a script under `if __name__ == "__main__":`'
        ) from error
    except Exception as error:
        raise InvalidWorkload(f"{_place(error, where, is_users)}: {_told(error)}") from error


def _place(error: BaseException, where: str, is_users: Callable[[str], bool]) -> str:
    """`file:line` of the user's innermost frame; of the text itself where it is no Python."""
    if isinstance(error, SyntaxError) and error.filename and os.path.exists(error.filename):
        name = where if is_users(error.filename) and where.endswith(".py") else error.filename
        return f"{name}:{error.lineno}" if error.lineno else name
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if is_users(frame.filename)]
    if not own:
        return where
    return f"{where if where.endswith('.py') else own[-1].filename}:{own[-1].lineno}"


def _missing_module(error: ModuleNotFoundError, place: str) -> EdgebuildError:
    package = (error.name or "").partition(".")[0]
    if not package or not str(error).startswith("No module named"):
        # The user's own words, which may say how to install it.
        return MissingPackage(f"{place}: {_first_line(error) or 'a package is missing'}")
    if package in sys.modules or _spec(package) is not None:
        return InvalidWorkload(f"{place}: {_told(error)}")
    nearest = did_you_mean(package, _neighbors())
    return MissingPackage(
        f"{place}: needs the package {package!r}, which is not installed."
        f"{f'{nearest} Else install' if nearest else ' Install'} it, for example with: "
        f"pip install {package}"
    )


def _neighbors() -> Iterable[str]:
    """The modules beside the user's file, whose folder comes first while it is loaded."""
    stems = (file.stem for file in Path(sys.path[0]).glob("*.py"))
    return [stem for stem in stems if stem.isidentifier()]


def _told(error: BaseException) -> str:
    message = error.msg if isinstance(error, SyntaxError) else _first_line(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else ""


def _a(value: object) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"


# ---- checking what it returned


def check_workload(workload: object) -> None:
    """Refuses what cannot be built from; the splits are checked later, as they are stored.

    Raises:
        InvalidWorkload: a field that is not what `Workload` says, a network that is in train mode,
            broken or not on the CPU, or that does not run on its example.
    """
    if not isinstance(workload, Workload):
        raise InvalidWorkload(f"{_a(workload)} is no workload: give an edgebuild Workload")
    if not isinstance(workload.name, str) or not workload.name.strip():
        raise InvalidWorkload(
            f'the workload\'s name is {workload.name!r}: give it a short one, as "solar-cells"'
        )
    try:
        _check_network(workload.network)
        _check_example(workload.example)
        _check_outputs(workload.network, workload.example)
        _check_rest(workload)
    except _Defect as defect:
        raise InvalidWorkload(f"workload {workload.name!r}: {defect}") from defect.__cause__


class _Defect(Exception):
    """What is wrong with a workload, and the next step."""


def _check_network(network: object) -> None:
    from torch import nn

    if isinstance(network, type) and issubclass(network, nn.Module):
        raise _Defect(f"the network is the class {network.__name__}: give an instance of it")
    if not isinstance(network, nn.Module):
        raise _Defect(f"the network is {_a(network)}: give an nn.Module")
    training = [name for name, module in network.named_modules() if module.training]
    if training:
        part = f"layer {training[0]!r} of the network" if training[0] else "network"
        raise _Defect(f"the {part} is in train mode: call .eval() on the network")
    for name, parameter in network.named_parameters():
        _check_weight(f"the network's parameter {name!r}", parameter, _is_finite)
    for name, buffer in network.named_buffers():
        _check_weight(f"the network's buffer {name!r}", buffer, _is_finite_or_masked)


def _check_weight(
    name: str, tensor: torch.Tensor, is_sound: Callable[[torch.Tensor], bool]
) -> None:
    from torch.nn.parameter import is_lazy

    if is_lazy(tensor):
        raise _Defect(f"{name} has no shape yet: run the network once")
    _check_device(name, tensor, "load its weights", "call .cpu() on the network")
    if not is_sound(tensor):
        raise _Defect(
            f"{name} holds NaN or infinite values: train it again, or load an intact checkpoint"
        )


def _check_device(name: str, tensor: torch.Tensor, if_meta: str, if_elsewhere: str) -> None:
    if tensor.device.type == "meta":
        raise _Defect(f"{name} is on the meta device, without data: {if_meta}")
    if tensor.device.type != "cpu":
        raise _Defect(f"{name} is on {tensor.device}: {if_elsewhere}")


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.dtype.is_floating_point:
        return True
    # Formats of eight bits have no arithmetic of their own.
    values = tensor.detach().float() if tensor.itemsize == 1 else tensor.detach()
    return bool(values.isfinite().all())


def _is_finite_or_masked(tensor: torch.Tensor) -> bool:
    """As attention masks are: buffers of zeros and -inf."""
    return not tensor.dtype.is_floating_point or _is_finite(tensor.detach().float().clamp(min=0))


def _check_example(example: object) -> None:
    import torch

    if isinstance(example, torch.Tensor):
        raise _Defect("the example is a bare tensor: give a tuple, as (tensor,)")
    if not isinstance(example, tuple):
        raise _Defect(f"the example is {_a(example)}: give a tuple of tensors")
    if not example:
        raise _Defect("the example is empty: give a tuple with the inputs of one call")
    for index, tensor in enumerate(example):
        _check_input(f"the example's input {index}", tensor)


def _check_input(name: str, tensor: object) -> None:
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise _Defect(f"{name} is {_a(tensor)}: give a tensor")
    _check_device(name, tensor, "give a real tensor", "call .cpu() on it")
    if tensor.ndim == 0:
        raise _Defect(f"{name} has no dimensions: give it a batch dimension of 1, as shape (1,)")
    if tensor.shape[0] != 1:
        raise _Defect(
            f"{name} has the shape {tuple(tensor.shape)}, so a batch of {tensor.shape[0]}: "
            "give one sample, with a first dimension of 1"
        )
    if tensor.layout != torch.strided or not _has_array(tensor.dtype):
        kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
        raise _Defect(f"{name} is {kind}, which numpy does not have: give a plain float32 tensor")
    if not _is_finite(tensor):
        raise _Defect(f"{name} holds NaN or infinite values: give a sample as deployed")


def _has_array(dtype: torch.dtype) -> bool:
    import torch

    try:
        torch.empty(0, dtype=dtype).numpy()
    except TypeError:
        return False
    return True


def _check_outputs(network: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> None:
    import torch

    try:
        with torch.no_grad():
            # Copies: the network may write into what it is given.
            outputs = network(*(tensor.detach().clone() for tensor in example))
    except Exception as error:
        raise _Defect(
            f"the network does not run on the example: {_told(error)} "
            "(call network(*example) to see where)"
        ) from error
    leaves = list(_leaves(outputs, "output"))
    if not leaves:
        raise _Defect(f"the network returns an empty {type(outputs).__name__}: return a tensor")
    for name, value in leaves:
        _check_output(f"the network's {name}", value)


def _leaves(value: object, name: str) -> Iterator[tuple[str, object]]:
    """Everything in a structure of tuples, lists and dicts, with its place in it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name} {key!r}")
    elif isinstance(value, tuple | list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{name} {index}")
    else:
        yield name, value


def _check_output(name: str, value: object) -> None:
    import torch

    if not isinstance(value, torch.Tensor):
        raise _Defect(
            f"{name} is {_a(value)}: return a tensor, or a tuple, list or dict of tensors"
        )
    if value.ndim == 0:
        raise _Defect(f"{name} has no dimensions: keep the batch dimension")
    if not _is_finite(value):
        raise _Defect(
            f"{name} holds NaN or infinite values on the example: "
            "check the weights, and how the example is normalized"
        )


def _check_rest(workload: Workload) -> None:
    if workload.score is not None and not callable(workload.score):
        raise _Defect(
            f"the score is {_a(workload.score)}: "
            "give a function (outputs, labels) -> float, or None"
        )
    if not isinstance(workload.notices, Mapping):
        raise _Defect(f"the notices are {_a(workload.notices)}: give a dict from name to text")
