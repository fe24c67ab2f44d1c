"""Says which bundle a new one replaces, and finds a place for one that must not be lost."""

from __future__ import annotations

import os
from itertools import chain, count
from pathlib import Path

from edgebuild.bundles.manifest import Manifest, is_bundle, load_bundle
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.errors import InvalidBundle
from edgebuild.vocabulary.verdict import Status


def place_aside(folder: Path, new: Manifest, progress: Progress) -> Path | None:
    """Where the bundle that is in the folder goes; None where it may go altogether, or none is.

    A bundle that breaches its budget is the nearest one can get, and no reason to lose one that
    kept its own: that is put beside it. One of another workload or target is replaced, and named.
    """
    if not is_bundle(folder):
        return None
    try:
        old = load_bundle(folder).manifest
    except InvalidBundle:
        progress.say(f"{folder} holds a bundle that this edgebuild cannot read: it is replaced")
        return None
    kept = old.verdict.status is not Status.BREACHED
    named = f"the bundle of {old.workload.name} for {old.target.name}"
    if kept and new.verdict.status is Status.BREACHED:
        aside = _free(folder)
        progress.say(
            f"{folder} held {named}, which kept its budget; the new one breaches its own: "
            f"the old one is now {aside}"
        )
        return aside
    if (old.workload.name, old.target.name) != (new.workload.name, new.target.name):
        progress.say(
            f"{folder}: replaces {named}, which {'kept' if kept else 'breached'} its budget"
        )
    return None


def _free(folder: Path) -> Path:
    """The first of NAME-kept, NAME-kept-2 … that is not taken."""
    absolute = folder.absolute()
    numbered = (absolute.with_name(f"{absolute.name}-kept-{number}") for number in count(2))
    places = chain([absolute.with_name(f"{absolute.name}-kept")], numbered)
    return next(place for place in places if not os.path.lexists(place))
