"""The door for probes: writes what was timed beside a profile, and reads it back."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from edgebuild.vocabulary.calibration import Calibration
from edgebuild.vocabulary.errors import InvalidTarget

SUFFIX = ".probes.json"
TABLE = re.compile(r"(?ms)^\[calibration\]\s*$.*?(?=^\[|\Z)")


def write_calibrated(profile: str, out: Path, calibration: Calibration) -> None:
    """Writes the profile's text to a .toml, with the probe in a file beside it that it names."""
    probes = out.with_suffix(SUFFIX)
    probes.write_bytes(TypeAdapter(Calibration).dump_json(calibration) + b"\n")
    text = TABLE.sub("", profile).rstrip()
    out.write_text(f'{text}\n\n[calibration]\nfile = "{probes.name}"\n', encoding="utf-8")


def read_calibration(path: Path) -> Calibration:
    """Reads what `write_calibrated` wrote.

    Raises:
        InvalidTarget: a file that cannot be read, or holds no probe; says where and why.
    """
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
        found = TypeAdapter(Calibration).validate_python(tables)
    except OSError as error:
        raise InvalidTarget(f"{path.name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidTarget(f"{path.name} cannot be read: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise InvalidTarget(f"{path.name}:{error.lineno}: is not JSON: {error.msg}") from None
    except ValidationError as error:
        raise InvalidTarget(f"{path.name}: {_first(error)}") from None
    _refuse_impossible(path.name, found)
    return found


def _first(error: ValidationError) -> str:
    problem: Any = error.errors(include_url=False)[0]
    place = ".".join(map(str, problem["loc"]))
    reason = str(problem["msg"])
    return f"{place}: {reason[:1].lower()}{reason[1:]}"


def _refuse_impossible(name: str, calibration: Calibration) -> None:
    if not any(runtime.networks for runtime in calibration.runtimes):
        raise InvalidTarget(f"{name}: holds no network of a probe")
    for runtime in calibration.runtimes:
        for network in runtime.networks:
            where = f"{name}: {runtime.name} {network.name}"
            if not (math.isfinite(network.seconds) and network.seconds > 0):
                raise InvalidTarget(f"{where}: {network.seconds} s is no time of a network")
            if not network.kernels:
                raise InvalidTarget(f"{where}: has no kernels")
            for kernel in network.kernels:
                times = (kernel.hot, kernel.cold)
                if not all(math.isfinite(time) and time >= 0 for time in times):
                    raise InvalidTarget(f"{where}: {times} s are no times of {kernel.kernel!r}")
