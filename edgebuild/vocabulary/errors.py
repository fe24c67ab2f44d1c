"""Everything that can go wrong through no fault of edgebuild's, as one tree.

    EdgebuildError                      exit code
    ├── InputError                      2   what the user handed in
    │   ├── InvalidQuantity                 "22" without a unit
    │   ├── InvalidTarget                   a profile that cannot be a device
    │   ├── InvalidWorkload                 a network, split or score that cannot be built
    │   ├── InvalidCheckpoint               a language model that cannot be read
    │   ├── InvalidBundle                   a folder that is not an intact bundle
    │   ├── InvalidDestination              an output path that cannot be written
    │   └── MissingPackage                  an extra that is not installed
    ├── NotExportable                   2   an operator that a format does not have
    ├── MethodFailed                    2   a choice that a method could not carry out
    ├── PrecisionRefused                2   a precision without a kernel on the target
    ├── FellBackToFloat                 2   integer kernels were asked for, float ones ran
    ├── ParityLost                      2   an artifact does not compute what its network does
    ├── NothingBuilt                    2   no candidate became an artifact
    ├── DoesNotFit                      3   a language model that no precision fits to the target
    └── DeviceError                     4   the machine that should run it did not
        └── MeterUnavailable            4   a power meter that cannot be read

A breached budget is no error: the bundle is written and the command exits with 3.
Anything else that is raised is a bug of edgebuild and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class EdgebuildError(Exception):
    """Names the thing, the reason and the next step, in one line."""

    exit_code: ClassVar[int] = 2


class InputError(EdgebuildError):
    """The user's input cannot be used."""


class InvalidQuantity(InputError):
    """A quantity without a number, a unit, or a possible value."""


class InvalidTarget(InputError):
    """A target profile that is unknown, malformed or impossible."""


class InvalidWorkload(InputError):
    """A workload that cannot be loaded, or cannot be built from."""


class InvalidCheckpoint(InputError):
    """A folder that is not a whole language model, or not one that is known."""


class InvalidBundle(InputError):
    """A folder that is not a bundle, or no longer the one that was proven."""


class InvalidDestination(InputError):
    """A path that must not or cannot be written."""


class MissingPackage(InputError):
    """An optional package that this input needs."""


class NotExportable(EdgebuildError):
    """A network that a format cannot express; names the operator."""


class MethodFailed(EdgebuildError):
    """A choice that a method could not carry out; names the part and the reason."""


class PrecisionRefused(EdgebuildError):
    """A precision that has no kernel where it was asked for; names the layer and the reason."""


class FellBackToFloat(EdgebuildError):
    """Layers that were asked to run on integer kernels and did not; names them."""


class ParityLost(EdgebuildError):
    """An artifact whose outputs are not those of the network it came from."""


class NothingBuilt(EdgebuildError):
    """No candidate became an artifact; carries each one's reason."""


class DoesNotFit(EdgebuildError):
    """A language model that is too large for its target, by arithmetic; names what is nearest."""

    exit_code: ClassVar[int] = 3


class DeviceError(EdgebuildError):
    """The device, or the runtime on it, did not do its part."""

    exit_code: ClassVar[int] = 4


class MeterUnavailable(DeviceError):
    """A power meter that is missing, cannot be read, or shows what is no measurement."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " Did you mean 'x'?" for the nearest known name, or the empty string."""
    # A name that merely lost its prefix (`raspberry-pi-5`) is nearer than edit distance says.
    names = sorted(known)
    inside = sorted((known for known in names if name and name in known), key=len)
    near = inside[:1] or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def told(error: BaseException) -> str:
    """ "ValueError: its first line", for an error from somebody else's code."""
    message = error.msg if isinstance(error, SyntaxError) else first_line(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else ""


def a_kind_of(value: object) -> str:
    """ "a list", "an int"."""
    kind = type(value).__name__
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
