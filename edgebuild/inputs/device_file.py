"""devices.toml: the names of a lab's boards, and the URL of each."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

from edgebuild import catalog
from edgebuild.inputs.target_file import target_names
from edgebuild.vocabulary.errors import InputError, did_you_mean
from edgebuild.vocabulary.target import Target

FILE = "devices.toml"


def device_url(name_or_url: str, target: Target | None = None) -> str:
    """The URL of a device from devices.toml; whatever names a transport itself is a URL.

    `twin:` alone is the twin of the target.

    Raises:
        InputError: no such name, or a file that cannot be read.
    """
    if target is not None and name_or_url in ("twin", "twin:"):
        is_shipped = target.name in target_names()
        return f"twin:{target.name}" if is_shipped else f"twin:{target.app_memory}B"
    scheme = name_or_url.partition(":")[0]
    transports = catalog.names("devices")
    if ":" in name_or_url and scheme in transports:
        return name_or_url
    path = _file()
    named = _read(path) if path else {}
    if name_or_url in named:
        return _checked(path, name_or_url, named[name_or_url])
    if name_or_url in transports:
        return name_or_url
    if ":" in name_or_url:
        nearest = did_you_mean(scheme, transports)
        known = ", ".join(f"{transport}:" for transport in transports)
        raise InputError(f"no transport is called {scheme!r}.{nearest} There are {known}")
    where = f"{path} names {', '.join(named) or 'none'}" if path else f"there is no {FILE} here"
    nearest = did_you_mean(name_or_url, [*named, *transports])
    raise InputError(
        f"no device is called {name_or_url!r}.{nearest} {where[:1].upper()}{where[1:]}"
    )


def _file() -> Path | None:
    """The one of this folder, else the user's own (XDG Base Directory)."""
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "edgebuild"
    return next((path for path in (Path(FILE), settings / FILE) if path.is_file()), None)


def _read(path: Path) -> Mapping[str, str]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not TOML: {error}") from None
    for name, url in tables.items():
        if not isinstance(url, str):
            raise InputError(f'{path}: {name}: is not a URL in quotes, as "ssh://pi@shelf"')
    return tables


def _checked(path: Path | None, name: str, url: str) -> str:
    """The URL of the board that is asked for; a slip in another's spoils nothing."""
    scheme, transports = url.partition(":")[0], catalog.names("devices")
    if scheme not in transports:
        nearest = did_you_mean(scheme, transports)
        raise InputError(f"{path}: {name}: no transport is called {scheme!r}.{nearest}")
    return url
