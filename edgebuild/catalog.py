"""Finds the plugins: every file of a floor-2 folder is one, named like the file."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from typing import Any

from edgebuild.vocabulary.contracts import (
    Device,
    Exporter,
    Meter,
    Method,
    Precisions,
    Progress,
    Runtime,
)
from edgebuild.vocabulary.errors import InputError, did_you_mean

# The method that changes no network: it says which precisions a layer may have.
QUANTIZE = "quantize"


def exporter(name: str) -> Exporter:
    return _create("exporters", name)  # type: ignore[no-any-return]


def runtime(name: str) -> Runtime:
    return _create("runtimes", name)  # type: ignore[no-any-return]


def device(url: str, progress: Progress | None = None) -> Device:
    """The device of a URL: its scheme is the plugin, the rest the plugin's own address."""
    scheme, _, address = url.partition(":")
    return _create("devices", scheme, address.removeprefix("//"), progress)  # type: ignore[no-any-return]


def meter(text: str, device: Device | None = None) -> Meter:
    """The meter "rapl", or "csv=power.csv" with its source; read on the device if one is given."""
    name, _, source = text.partition("=")
    return _create("meters", name, source, device)  # type: ignore[no-any-return]


def method(name: str) -> Method:
    return _create("methods", name)  # type: ignore[no-any-return]


def methods() -> list[Method]:
    """Everything that changes networks, in the order of the stages."""
    found = [method(name) for name in names("methods") if name != QUANTIZE]
    return sorted(found, key=lambda one: one.stage)


def precisions() -> Precisions:
    """Storage without a kernel included: whether it is wanted, the search decides."""
    return _create("methods", QUANTIZE, True)  # type: ignore[no-any-return]


def names(folder: str) -> list[str]:
    """The plugins of a folder, our own files first; a leading underscore marks a helper."""
    package = importlib.import_module(f"edgebuild.{folder}")
    own = [found.name for found in pkgutil.iter_modules(package.__path__)]
    others = [point.name for point in _installed(folder)]
    return sorted(name for name in own if not name.startswith("_")) + sorted(others)


def _create(folder: str, name: str, *settings: object) -> Any:
    """Makes the plugin, by default with its own settings; its class is the name in CamelCase."""
    for point in _installed(folder).select(name=name):
        return point.load()(*settings)
    if name not in names(folder):
        known = names(folder)
        raise InputError(f"no {folder[:-1]} is called {name!r}.{did_you_mean(name, known)}")
    module = importlib.import_module(f"edgebuild.{folder}.{name}")
    return getattr(module, "".join(word.capitalize() for word in name.split("_")))(*settings)


@cache
def _installed(folder: str) -> EntryPoints:
    """What other packages add. Asked once: to find out, a file of every package is read."""
    return entry_points(group=f"edgebuild.{folder}")
