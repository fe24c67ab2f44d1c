"""The door for target profiles: reads a TOML file, refuses what cannot be a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgebuild.inputs.calibration_file import read_calibration
from edgebuild.inputs.target_schema import Profile, Runtime, checked_profile
from edgebuild.inputs.this_machine import detected_facts
from edgebuild.inputs.toml_document import Document, Key, Tables
from edgebuild.vocabulary.calibration import Calibration
from edgebuild.vocabulary.errors import InvalidTarget, did_you_mean
from edgebuild.vocabulary.precision import LayerKind
from edgebuild.vocabulary.target import (
    Budget,
    ComputeFacts,
    DeviceKind,
    MemoryFacts,
    PowerFacts,
    RuntimeFacts,
    Target,
)
from edgebuild.vocabulary.units import format_power, format_size


def load_target(name_or_path: str | Path) -> Target:
    """Reads a shipped profile by its name, or any profile by the path of its file.

    A profile of kind "host" describes this machine: what its file leaves out is detected.

    Raises:
        InvalidTarget: no such target, or a file that is unreadable, malformed or impossible;
            the message names the file, the line, the key, the reason and the nearest key.
    """
    document = Document.read(_file_of(name_or_path))
    tables = _with_detected_facts(document.tables)
    profile = checked_profile(document, tables)
    _refuse_impossible_facts(document, profile)
    _refuse_impossible_budget(document, profile)
    _refuse_missing_sources(document, tables)
    return _as_target(document.path.stem, profile, _calibration(document, profile))


def profile_text(name_or_path: str | Path) -> str:
    """A profile as it stands in its file.

    Raises:
        InvalidTarget: no such target, or a file that cannot be read.
    """
    return Document.read(_file_of(name_or_path)).text


def target_names() -> list[str]:
    """The names of the shipped profiles, sorted."""
    return sorted(file.stem for file in _shipped_folder().glob("*.toml"))


# ---- finding and reading the file


def _file_of(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    names = target_names()
    if isinstance(name_or_path, str) and name_or_path in names:
        return _shipped_folder() / f"{name_or_path}.toml"
    if isinstance(name_or_path, Path) or path.suffix == ".toml" or path.is_file():
        return path
    nearest = did_you_mean(name_or_path, names)
    raise InvalidTarget(
        f"unknown target {name_or_path!r}.{nearest} `edgebuild targets` lists all; "
        "your own is given by the path of its .toml file"
    )


def _shipped_folder() -> Path:
    """`edgebuild/targets` in an installed package, the repository's own in an editable one."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "targets"
    return installed if installed.is_dir() else package.parent / "targets"


def _refuse_impossible_facts(document: Document, profile: Profile) -> None:
    memory = profile.memory
    if memory.mapped_share is not None and memory.mapped_share < memory.app_share:
        reason = f"{memory.mapped_share:g} is less than memory.app_share, which counts in it"
        raise document.refusal(("memory", "mapped_share"), reason)
    power, cores = profile.power, profile.compute.cores
    if power.idle is not None and power.active is not None and power.idle > power.active:
        reason = f"{format_power(power.idle)} is more than active, {format_power(power.active)}"
        raise document.refusal(("power", "idle"), reason)
    for name, runtime in profile.runtime.items():
        if runtime.threads > cores:
            reason = f"{runtime.threads} is more than the {cores} in compute.cores"
            raise document.refusal(("runtime", name, "threads"), reason)
        if not any(getattr(runtime, kind) for kind in LayerKind):
            reason = f"no kernels: list precisions for one of {', '.join(LayerKind)}"
            raise document.refusal(("runtime", name), reason)


def _refuse_impossible_budget(document: Document, profile: Profile) -> None:
    budget, memory, power = profile.budget, profile.memory, profile.power
    app_memory = memory.ram * memory.app_share
    if budget.memory is not None and budget.memory > app_memory:
        raise document.refusal(
            ("budget", "memory"),
            f"{format_size(budget.memory)} is more than the {format_size(app_memory)} "
            "that an application may take (memory.ram × memory.app_share)",
        )
    if budget.power is not None and budget.rate is None:
        reason = 'says nothing without budget.rate, as "2 /s"'
        raise document.refusal(("budget", "power"), reason)
    if budget.power is not None and power.idle is not None and power.active is not None:
        above_idle = power.active - power.idle
        # A tolerance for decimals: "3.5 W" − "0.5 W" must allow "3 W".
        if budget.power > above_idle * (1 + 1e-9):
            raise document.refusal(
                ("budget", "power"),
                f"{format_power(budget.power)} above idle is more than the device can draw: "
                f"{format_power(above_idle)} (power.active − power.idle)",
            )
    if budget.accuracy_drop is not None and budget.accuracy_drop > 1:
        raise document.refusal(("budget", "accuracy_drop"), "is more than 100 %")


def _calibration(document: Document, profile: Profile) -> Calibration | None:
    """What a probe of the device has timed, from the file beside the profile."""
    if profile.calibration is None:
        return None
    key = ("calibration", "file")
    try:
        found = read_calibration(document.path.parent / profile.calibration.file)
    except InvalidTarget as error:
        raise document.refusal(key, str(error)) from None
    for probed in found.runtimes:
        table = profile.runtime.get(probed.name)  # type: ignore[call-overload]
        if table is not None and table.threads != probed.threads:
            reason = (
                f"{probed.name} was probed on {probed.threads} threads and has {table.threads} "
                "here: probe it again"
            )
            raise document.refusal(key, reason)
    return found


def _refuse_missing_sources(document: Document, tables: Tables) -> None:
    """Every fact needs a source, its own or its table's; every source needs its key."""
    keys = {".".join(key): key for key in _keys(tables) if key[0] != "sources"}
    for name in tables["sources"]:
        if name not in keys:
            nearest = did_you_mean(name, keys)
            reason = f"a source for a key that is not there.{nearest}".rstrip(".")
            raise document.refusal(("sources", name), reason)
    for key in keys.values():
        is_fact = key[0] in ("memory", "compute", "runtime", "power")
        is_table = isinstance(_value_at(tables, key), dict)
        if is_fact and not is_table and not _is_sourced(key, tables["sources"]):
            reason = 'no source: say in [sources] where it is from, or "unsourced"'
            raise document.refusal(key, reason)


def _keys(tables: Tables, above: Key = ()) -> Iterator[Key]:
    """The keys of all tables and of all values in them."""
    for name, value in tables.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from _keys(value, (*above, name))


def _value_at(tables: Tables, key: Key) -> Any:
    value: Any = tables
    for part in key:
        value = value[part]
    return value


def _is_sourced(key: Key, sources: Mapping[str, str]) -> bool:
    return any(".".join(key[:length]) in sources for length in range(1, len(key) + 1))


def _as_target(name: str, profile: Profile, calibration: Calibration | None) -> Target:
    return Target(
        name=name,
        title=profile.title,
        kind=profile.kind,
        memory=MemoryFacts(**dict(profile.memory)),
        compute=ComputeFacts(**dict(profile.compute)),
        runtimes=tuple(_as_runtime(name, table) for name, table in profile.runtime.items()),
        power=PowerFacts(**dict(profile.power)),
        budget=Budget(**dict(profile.budget)),
        sources=dict(profile.sources),
        calibration=calibration,
    )


def _as_runtime(name: str, table: Runtime) -> RuntimeFacts:
    kernels = {kind: getattr(table, kind) for kind in LayerKind if getattr(table, kind)}
    return RuntimeFacts(
        name=name,
        version=table.version,
        threads=table.threads,
        activations=table.activations,
        channel_multiple=table.channel_multiple,
        kernels=kernels,
    )


# ---- what this machine fills in


def _with_detected_facts(tables: Tables) -> Tables:
    """A host's tables, with every fact that they leave out filled in, and its source."""
    if tables.get("kind") != DeviceKind.HOST or not isinstance(tables.get("sources"), dict):
        return tables
    runtimes = tables.get("runtime")
    names = list(runtimes) if isinstance(runtimes, dict) else []
    filled: Tables = {name: dict(v) if isinstance(v, dict) else v for name, v in tables.items()}
    for key, (value, source) in detected_facts(names).items():
        table = _table_for(filled, key[:-1])
        if table is not None and key[-1] not in table:
            table[key[-1]] = value
            filled["sources"].setdefault(".".join(key), source)
    return filled


def _table_for(tables: Tables, key: Key) -> Tables | None:
    """A copy, put in its place, of the table at this key; None where something else stands."""
    table = tables
    for part in key:
        value = table.get(part, {})
        if not isinstance(value, dict):
            return None
        table[part] = dict(value)
        table = table[part]
    return table
