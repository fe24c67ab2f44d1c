"""The door for workloads: finds what `MODEL` names and runs the user's file.

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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from edgebuild.inputs.huggingface import load_checkpoint
from edgebuild.vocabulary.errors import (
    EdgebuildError,
    InvalidWorkload,
    MissingPackage,
    a_kind_of,
    did_you_mean,
    first_line,
    told,
)
from edgebuild.vocabulary.workload import Workload

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
        found = "nothing" if made is None else a_kind_of(made)
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
            f"{where}: {name!r} is {a_kind_of(function)}, not a function: "
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
        raise InvalidWorkload(f"{_place(error, where, is_users)}: {told(error)}") from error


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
        return MissingPackage(f"{place}: {first_line(error) or 'a package is missing'}")
    if package in sys.modules or _spec(package) is not None:
        return InvalidWorkload(f"{place}: {told(error)}")
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
