"""The commands that make a device ready: probe it, equip it, do without Python there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgebuild.cli_options import AsJson, Dist, plain, print_json
from edgebuild.vocabulary.errors import InputError, did_you_mean

device_app = typer.Typer(help="Make a device ready.", no_args_is_help=True)


def probe(
    target: Annotated[
        str, typer.Option("-t", "--target", help="What the device is: a name, or a .toml.")
    ] = "host",
    device: Annotated[
        str | None,
        typer.Option(help="ssh://user@host, adb://SERIAL, or a name; this machine unless given."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The calibrated profile to write: a .toml.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time a device's kernels for about a minute, and write a profile that predicts by them."""
    from edgebuild.build import calibrate
    from edgebuild.inputs.device_file import device_url
    from edgebuild.inputs.target_file import load_target
    from edgebuild.report import progress, terminal

    profile = load_target(target)
    console = terminal.stderr()
    out = out or Path(f"{profile.name}-calibrated.toml")
    with progress.shown(console) as bars:
        url = device_url(device, profile) if device else ""
        found = calibrate(target, out, device=url, progress=bars)
    counts = {
        runtime.name: sum(len(network.kernels) for network in runtime.networks)
        for runtime in found.runtimes
    }
    if as_json:
        print_json({"profile": str(out), "device": found.device, "kernels": counts})
    else:
        told = ", ".join(f"{count} kernels of {name}" for name, count in counts.items())
        console.print(f"{out} is calibrated on {found.device} by {told}: build for it by -t {out}")


def native(
    dist: Dist,
    out: Annotated[Path, typer.Option("-o", "--out", help="The new folder to write.")],
    machine: Annotated[
        str | None, typer.Option(help="aarch64 or x86_64; as the bundle's target unless given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put a bundle into a folder that runs without Python: a C runner and the runtime's library."""
    from edgebuild.bundles.manifest import load_bundle
    from edgebuild.bundles.native import pack_native
    from edgebuild.bundles.stand_in import machine_of
    from edgebuild.report import progress, terminal

    console = terminal.stderr()
    bundle = load_bundle(dist)
    # Whose instruction set is not known is no desktop.
    machine = machine or machine_of(bundle.manifest.target) or "aarch64"
    with progress.shown(console) as bars:
        folder = pack_native(bundle, out, machine, bars)
    if as_json:
        print_json({"folder": str(folder), "machine": machine})
    else:
        console.print(f"{folder} is for {machine}: copy it there, run ./runner or ./runner bench")


@device_app.command()
def setup(
    url: Annotated[str, typer.Argument(help="ssh://user@host, adb://SERIAL, or a name.")],
    runtimes: Annotated[
        list[str] | None, typer.Option("--runtime", help="Only these: onnxruntime, litert.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Install numpy and the runtimes for a device's Python, which needs no internet for it."""
    from edgebuild import catalog
    from edgebuild.bundles.setup import PACKAGES, set_up
    from edgebuild.inputs.device_file import device_url
    from edgebuild.report import progress, terminal

    for name in runtimes or ():
        if name not in PACKAGES:
            raise InputError(f"no runtime is called {name!r}.{did_you_mean(name, PACKAGES)}")
    console = terminal.stderr()
    with progress.shown(console) as bars, catalog.device(device_url(url), bars) as device:
        found = set_up(device, runtimes or tuple(PACKAGES), bars)
    if as_json:
        print_json(plain(found))
    else:
        terminal.show_equipment(console, device.name, found)
