"""Detects the facts of this machine, in the words of a target profile."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgebuild.vocabulary.units import Bytes

CGROUP = "/sys/fs/cgroup"


@dataclass(frozen=True)
class _Isa:
    """A CPU's instruction set, with what one core of the plainest such CPU does in a cycle.

    Float kernels compute `channel_multiple` channels at once.
    """

    name: str
    fp32_per_cycle: int
    int8_per_cycle: int
    reason: str
    channel_multiple: int = 8


def detected_facts(runtimes: Iterable[str]) -> dict[tuple[str, ...], tuple[object, str]]:
    """Facts of this machine in the words of a profile, each with its source."""
    cores, clock, isa = _usable_cores(), _clock(), _isa()
    rated = clock or 2e9
    assumed = "" if clock else " (clock assumed)"
    product = f"calculated: {cores} cores × {rated / 1e9:.1f} GHz{assumed}"
    is_x86 = isa.name.startswith("x86")
    facts: dict[tuple[str, ...], tuple[object, str]] = {
        ("memory", "ram"): (f"{_usable_ram()} B", "detected"),
        ("memory", "bandwidth"): ("10 GB/s", "unsourced: a conservative guess"),
        ("compute", "isa"): (isa.name, "detected"),
        ("compute", "cores"): (cores, "detected: physical cores that this process may use"),
        ("compute", "fp32"): (
            f"{cores * rated * isa.fp32_per_cycle / 1e9:.1f} GFLOP/s",
            f"{product} × {isa.fp32_per_cycle} flop/cycle ({isa.reason})",
        ),
        ("compute", "int8"): (
            f"{cores * rated * isa.int8_per_cycle / 1e9:.1f} GOP/s",
            f"{product} × {isa.int8_per_cycle} op/cycle ({isa.reason})",
        ),
    }
    if clock:
        facts["compute", "clock"] = (f"{clock / 1e9:.1f} GHz", "detected")
    for name in runtimes:
        table = ("runtime", name)
        # LiteRT's kernels take signed activations everywhere.
        unsigned = is_x86 and name == "onnxruntime"
        facts[*table, "version"] = (_installed_version(name), "detected")
        facts[*table, "activations"] = ("uint8" if unsigned else "int8", "by the detected isa")
        facts[*table, "channel_multiple"] = (isa.channel_multiple, "by the detected isa")
    return facts


def available_memory() -> Bytes:
    """What a new process may take before something has to go.

    The kernel's estimate, or what the container's limit leaves where that is less; pages of files
    that nobody has touched lately count as free.
    """
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _text_of("/proc/meminfo"), re.MULTILINE)
    free = int(found[1]) * 1024 if found else _usable_ram()
    limit = _text_of(f"{CGROUP}/memory.max").strip()
    if limit.isdecimal():
        used = int(_text_of(f"{CGROUP}/memory.current") or 0)
        idle = re.search(r"^inactive_file (\d+)", _text_of(f"{CGROUP}/memory.stat"), re.MULTILINE)
        free = min(free, int(limit) - used + (int(idle[1]) if idle else 0))
    return Bytes(max(free, 0))


def _usable_ram() -> int:
    """Physical memory, or the container's limit where that is lower."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _text_of(f"{CGROUP}/{file}").strip()
        limits += [int(text)] if text.isdecimal() and int(text) > 0 else []
    return min(limits)


def _usable_cores() -> int:
    """The physical cores that this process may use: two hyperthreads share their vector units."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return len({_text_of(siblings.format(cpu)) or cpu for cpu in os.sched_getaffinity(0)})


def _clock() -> float | None:
    """The highest clock in hertz; a virtual machine tells only the one that it has."""
    kilohertz = _text_of("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").strip()
    if kilohertz.isdecimal():
        return int(kilohertz) * 1e3
    megahertz = re.search(r"^cpu MHz\s*:\s*([\d.]+)", _text_of("/proc/cpuinfo"), re.MULTILINE)
    return round(float(megahertz[1]), -2) * 1e6 if megahertz else None


def _text_of(file: str) -> str:
    """The file's text, empty where this machine does not have it."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError:
        return ""


def _isa() -> _Isa:
    import platform

    machine, flags = platform.machine().lower(), _cpu_flags()
    if machine in ("x86_64", "amd64", "i686", "x86"):
        return _x86(flags)
    if machine in ("aarch64", "arm64"):
        return _arm64(flags, is_apple=platform.system() == "Darwin")
    return _Isa(machine, 2, 2, "scalar")


def _cpu_flags() -> frozenset[str]:
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _text_of("/proc/cpuinfo"), re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def _x86(flags: frozenset[str]) -> _Isa:
    extensions = {"avx2": "avx2", "avx512f": "avx512f", "avx_vnni": "avx-vnni"}
    extensions |= {"avx512_vnni": "avx512-vnni", "amx_int8": "amx-int8"}
    name = "+".join(["x86-64", *(text for flag, text in extensions.items() if flag in flags)])
    lanes = 16 if "avx512f" in flags else 8
    if flags & {"avx512_vnni", "avx_vnni"}:
        return _Isa(name, 32, 128, "512 bits of FMA or VNNI a cycle", lanes)
    if "avx512f" in flags or {"avx2", "fma"} <= flags:
        return _Isa(name, 32, 64, "512 bits of FMA a cycle", lanes)
    return _Isa(name, 8, 16, "128 bits of multiply and of add a cycle")


def _arm64(flags: frozenset[str], *, is_apple: bool) -> _Isa:
    if not is_apple and "asimddp" not in flags:
        return _Isa("armv8-a", 8, 16, "128 bits of FMA a cycle")
    name = "armv8.2-a+dotprod" + ("+i8mm" if "i8mm" in flags else "")
    return _Isa(name, 16, 64, "256 bits of FMA or dot product a cycle")


def _installed_version(runtime: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    package = {"litert": "ai-edge-litert"}.get(runtime, runtime)
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
