"""The command line: words into calls, results into text, errors into exit codes."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgebuild.cli_devices import device_app, native, probe
from edgebuild.cli_llm import (
    PROMPT,
    Wanted,
    bench_language_model,
    build_language_model,
    chat,
    convert,
    distill_data,
    explain_language_model,
    plan,
    refuse_options,
    shrink,
    verify_language_model,
)
from edgebuild.cli_options import BREACHED, AsJson, Context, Dist, plain, print_json
from edgebuild.vocabulary.errors import DeviceError, EdgebuildError
from edgebuild.vocabulary.precision import Precision
from edgebuild.vocabulary.target import Preference

if TYPE_CHECKING:
    from edgebuild.bundles.bench import Benched
    from edgebuild.bundles.manifest import Bundle
    from edgebuild.vocabulary.verdict import BudgetLine

USAGE = 2
INTERRUPTED = 130
# How long, in seconds, a command that was interrupted may take to clean up.
PATIENCE = 5.0

app = typer.Typer(
    help="Builds a trained PyTorch model for a named device and proves that it fits.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _interrupt_until_heard() -> None:
    """Lets Ctrl-C interrupt again and again: destructors and libraries' callbacks swallow it."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)


def main() -> None:
    """Runs a command; every error that is not ours to fix is one line and an exit code."""
    # None is wanted, and the search for them reads the metadata of every installed package.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    _interrupt_until_heard()
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:
            # What typer makes of it.
            raise KeyboardInterrupt
        sys.exit(code)
    except typer.TyperException as error:
        print(f"error: {error} Try --help.", file=sys.stderr)
        sys.exit(USAGE)
    except EdgebuildError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted: run the same command again to go on", file=sys.stderr)
        # At once: threads that wait for a device are of no more use.
        sys.stderr.flush()
        os._exit(INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@app.command()
def targets(
    name: Annotated[str | None, typer.Argument(help="A target, or the path of a .toml.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the devices to build for, or show one with the source of every fact."""
    from edgebuild.inputs.target_file import load_target, target_names
    from edgebuild.report import targets as report

    found = [load_target(each) for each in ([name] if name else target_names())]
    if as_json:
        print_json(report.as_json(found))
    elif name:
        report.show_one(found[0])
    else:
        report.show_all(found)


app.command()(plan)
app.command()(convert)
app.command()(shrink)
app.command()(chat)
app.command("distill-data")(distill_data)


@app.command()
def build(
    workload: Annotated[
        str,
        typer.Argument(help="file.py, file.py:function, package.module:function or an HF folder."),
    ],
    target: Annotated[str, typer.Option("-t", "--target", help="A name, or the path of a .toml.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Where to write the bundle.")
    ] = None,
    latency: Annotated[str | None, typer.Option(help="The p99 may take this: 22ms.")] = None,
    memory: Annotated[str | None, typer.Option(help="Peak over the runtime's own: 64MB.")] = None,
    storage: Annotated[str | None, typer.Option(help="Size of the model file: 5MB.")] = None,
    download: Annotated[
        str | None, typer.Option(help="The model file in a zip or APK: 2MB.")
    ] = None,
    power: Annotated[str | None, typer.Option(help="Above idle, at --rate: 3W.")] = None,
    rate: Annotated[str | None, typer.Option(help="Inferences a second: 30/s.")] = None,
    accuracy_drop: Annotated[
        str | None,
        typer.Option(help="Points of a score from 0 to 1, or a share of another: 1%."),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="Only these; of a language model: onnx, or tflite."),
    ] = None,
    precisions: Annotated[
        list[Precision] | None,
        typer.Option("--precision", help="Only these, wherever there is a kernel."),
    ] = None,
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="Only these, such as prune and distill.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Search so long from the start on; else until the budget is kept."
        ),
    ] = None,
    prefer: Annotated[
        Preference, typer.Option(help="What is chosen of those that keep the budget.")
    ] = Preference.SCORE,
    seed: Annotated[int, typer.Option(min=0, help="What training is drawn from.")] = 0,
    device: Annotated[
        str | None,
        typer.Option(help="The target itself, to measure on: ssh://…, adb://…, or a name."),
    ] = None,
    emulate: Annotated[
        bool, typer.Option("--emulate", help="Prove the bits on emulated ARM64 processors, too.")
    ] = False,
    weights: Annotated[
        str | None, typer.Option(help="Of a language model: int4-g32, int4-g32+int8-head, …")
    ] = None,
    context: Context = None,
    text: Annotated[
        Path | None, typer.Option(help="For a language model: calibrates, and proves.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 3 unless every line is met, by measurement.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build a bundle for a target: search, measure, judge, pack."""
    import edgebuild
    from edgebuild.inputs.device_file import device_url
    from edgebuild.inputs.target_file import load_target
    from edgebuild.llm.source import is_decoder
    from edgebuild.report import progress, terminal
    from edgebuild.vocabulary.target import Budget
    from edgebuild.vocabulary.verdict import Status

    wishes = {
        "latency_p99": latency,
        "memory": memory,
        "storage": storage,
        "download": download,
        "power": power,
        "rate": rate,
        "accuracy_drop": accuracy_drop,
    }
    budget = Budget.parse(**{line: wish for line, wish in wishes.items() if wish is not None})
    profile = load_target(target)
    if is_decoder(Path(workload)):
        unused: dict[str, object] = {
            **{"latency": latency, "memory": memory, "download": download, "power": power},
            **{"rate": rate, "accuracy_drop": accuracy_drop, "minutes": minutes},
            **{"precision": precisions, "method": methods},
            **{"device": device, "emulate": emulate, "seed": seed},
            "prefer": prefer is not Preference.SCORE,
        }
        refuse_options(unused, "language models")
        wanted = Wanted(context, weights, storage, text, formats or ())
        build_language_model(Path(workload), profile, out, wanted, strict, as_json)
        return
    refuse_options({"weights": weights, "context": context, "text": text}, "this kind of network")
    console = terminal.stderr()
    # What the user's own code prints must not get between --json and its reader.
    with redirect_stdout(sys.stderr), progress.shown(console) as bars:
        bundle = edgebuild.build(
            workload,
            profile,
            budget,
            out=out or Path("dist") / f"{_stem(workload)}-{profile.name}",
            formats=formats or (),
            precisions=precisions or (),
            methods=methods or (),
            prefer=prefer,
            minutes=minutes,
            seed=seed,
            device=device_url(device, profile) if device else "",
            emulate=emulate,
            progress=bars,
        )
    terminal.show_bundle(console, bundle)
    terminal.show_arm_proofs(console, bundle.manifest, bundle.manifest.arm)
    if as_json:
        _print_manifest(bundle)
    status = bundle.verdict.status
    if status is Status.BREACHED:
        sys.exit(BREACHED)
    if strict and status is not Status.MET:
        open_lines = [line.name for line in bundle.verdict.lines if line.status is not Status.MET]
        console.print(f"--strict: not measured on the target: {', '.join(open_lines)}")
        sys.exit(BREACHED)


@app.command()
def bench(
    dist: Dist,
    devices: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            help="ssh://user@host, adb://SERIAL, adb://host:port, twin:TARGET, twin:256MB, local, "
            "or a name from devices.toml. Repeat it for several, side by side.",
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="Measure at least this long.")] = 10.0,
    count: Annotated[int, typer.Option(min=1, help="And at least this many runs.")] = 1024,
    threads: Annotated[int | None, typer.Option(min=1, help="As in the bundle unless set.")] = None,
    meter: Annotated[
        str | None,
        typer.Option(help="Power, too: ina3221, pmic, battery, rapl or csv, as NAME[=PATH]."),
    ] = None,
    sustained: Annotated[
        str | None, typer.Option(help="Run on so long, to see what heat leaves: 10min.")
    ] = None,
    native: Annotated[
        bool, typer.Option("--native", help="By the runner in C, where there is no Python.")
    ] = False,
    prompt: Annotated[
        list[int] | None, typer.Option(min=1, help="Of a language model: tokens of a prompt.")
    ] = None,
    new: Annotated[int, typer.Option(min=1, help="Of a language model: tokens decoded.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Run a bundle again, here or on other devices: latency, memory, load; power by a meter."""
    from edgebuild import catalog
    from edgebuild.bundles.bench import Effort, bench_all
    from edgebuild.bundles.manifest import load_bundle
    from edgebuild.inputs.device_file import device_url
    from edgebuild.llm.bundle import is_language_model
    from edgebuild.report import progress, terminal
    from edgebuild.vocabulary.units import parse_time

    if is_language_model(dist):
        unused = {"meter": meter, "sustained": sustained, "native": native}
        refuse_options(unused, "language models")
        lengths = (prompt or [PROMPT], new)
        bench_language_model(dist, devices or ["local"], *lengths, threads, as_json)
        return
    bundle = load_bundle(dist)
    console = terminal.stderr()
    with progress.shown(console) as bars:
        named = {
            name: catalog.device(device_url(name, bundle.manifest.target), bars)
            for name in devices or ["local"]
        }
        lasting = parse_time(sustained) if sustained else None
        effort = Effort(seconds, count, threads, meter or "", lasting, native)
        found = bench_all(bundle, named, effort)
    if as_json:
        print_json({"bundle": str(bundle.path), "devices": [plain(one) for one in found]})
    terminal.show_benched(console, bundle, found)
    for one in found:
        if one.sustained:
            terminal.show_sustained(console, one, one.sustained)
        if one.power:
            terminal.show_draw(console, bundle, one.power, _power_line(bundle, one))
    if any(one.error or one.power_error for one in found):
        sys.exit(DeviceError.exit_code)


app.command()(probe)


@app.command()
def explain(dist: Dist, as_json: AsJson = False) -> None:
    """Say what was tried, what was chosen, and why; each limit with its evidence."""
    from edgebuild.bundles.manifest import load_bundle
    from edgebuild.llm.bundle import is_language_model
    from edgebuild.report import terminal

    if is_language_model(dist):
        explain_language_model(dist, as_json)
        return
    bundle = load_bundle(dist)
    if as_json:
        _print_manifest(bundle)
        return
    console = terminal.stderr()
    terminal.show_trials(console, bundle.manifest)
    terminal.show_sites(console, bundle.manifest)
    terminal.show_fallbacks(console, bundle.manifest)
    terminal.show_arm_proofs(console, bundle.manifest, bundle.manifest.arm)
    terminal.show_bundle(console, bundle)


@app.command()
def verify(
    dist: Dist,
    device: Annotated[
        str, typer.Option(help="Where to replay them: local, or emulated://cortex-a76.")
    ] = "local",
    as_json: AsJson = False,
) -> None:
    """Check every file's hash, and replay the golden inputs in the runtime."""
    from edgebuild import catalog
    from edgebuild.bundles.arm_proof import prove_on_arm
    from edgebuild.bundles.manifest import load_bundle
    from edgebuild.bundles.verify import verify as check
    from edgebuild.llm.bundle import is_language_model
    from edgebuild.report import terminal

    if is_language_model(dist):
        verify_language_model(dist, device, as_json)
        return
    bundle = load_bundle(dist)
    is_emulated = device.startswith("emulated:")
    with catalog.device(device) as entered:
        found = check(bundle, entered)
        proof = prove_on_arm(bundle, entered) if is_emulated else None
    if as_json:
        print_json(plain(found) | ({"arm": plain(proof)} if proof else {}))
        return
    console = terminal.stderr()
    terminal.show_verification(console, bundle, found)
    terminal.show_arm_proofs(console, bundle.manifest, [proof] if proof else [])


app.command()(native)
app.add_typer(device_app, name="device")


def _power_line(bundle: Bundle, one: Benched) -> BudgetLine | None:
    """The bundle's power line by a meter; None where it has none, or is for another machine."""
    from dataclasses import replace

    from edgebuild.bundles.energy import power_at
    from edgebuild.search.judge import judge
    from edgebuild.vocabulary.target import Budget

    budget, target = bundle.manifest.budget, bundle.manifest.target
    is_target = target.is_this_machine and not one.unjudged
    if one.power is None or budget.power is None or budget.rate is None or not is_target:
        return None
    figures = {"power": power_at(one.power, budget.rate)}
    return judge(figures, replace(Budget(), power=budget.power), target).lines[0]


def _stem(workload: str) -> str:
    """A name for the bundle's folder, from the reference to its workload."""
    return Path(workload.partition(":")[0]).stem.replace("_", "-") or "bundle"


def _print_manifest(bundle: Any) -> None:
    from edgebuild.bundles.manifest import dump_manifest

    print(dump_manifest(bundle.manifest).decode())
