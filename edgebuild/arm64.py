"""Fetches what runs ARM64 programs here, once: an emulator, Debian's libraries, the wheels.

`python -m edgebuild.arm64` does so before anything needs it, and prints the folder.
"""

from __future__ import annotations

import compileall
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from edgebuild.cache import Cache, default_root, digest
from edgebuild.vocabulary.contracts import Progress, Step
from edgebuild.vocabulary.errors import DeviceError
from edgebuild.vocabulary.silence import Silence

# The release whose Python is the project's own. Its point and security releases replace packages
# without keeping the old ones, so what is pinned is the release; apt checks the signatures, and
# packages.json keeps which versions were taken.
RELEASE = "bookworm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SOURCES = (
    f"http://deb.debian.org/debian {RELEASE} main",
    f"http://deb.debian.org/debian-security {RELEASE}-security main",
)
EMULATOR = "qemu-user-static"
LIBRARIES = (
    "libbz2-1.0",
    "libc6",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "liblzma5",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libsqlite3-0",
    "libssl3",
    "libstdc++6",
    "libuuid1",
    "python3.11-minimal",
    "zlib1g",
)
# In the very releases that are installed here: only then is it the processor that differs.
WHEELS = ("numpy", "onnxruntime", "ai-edge-litert")
# Debian 12 has glibc 2.36; pip takes no older platform for granted where one is named.
PLATFORMS = ("manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, 37)))
# Aborts on ARMv8.0, and computes nothing on a CPU.
USELESS = "ai_edge_litert/libLiteRtWebGpuAccelerator.so"
# A child process would be started by the kernel here, which knows no ARM64, and at best be another
# Python than this one.
GUARD = '''\
"""Keeps everything in one emulated process."""

import os
import sys

STARTS = {"os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.system", "subprocess.Popen"}


def refuse(event, arguments):
    if event in STARTS:
        raise OSError("no child process is emulated: " + event)


if os.uname().machine != "aarch64":
    sys.exit("this Python does not run on ARM64, but on " + os.uname().machine)
sys.addaudithook(refuse)
'''


@dataclass(frozen=True)
class Parts:
    """The folder that holds them."""

    folder: Path

    @property
    def emulator(self) -> Path:
        return self.folder / "usr/bin/qemu-aarch64-static"

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def python(self) -> Path:
        return self.root / "usr/bin/python3.11"

    @property
    def site(self) -> Path:
        """The wheels, unpacked."""
        return self.folder / "site"

    @property
    def emulator_release(self) -> str:
        """ "7.2" for Debian's "1:7.2+dfsg-7+deb12u18"."""
        packages: dict[str, str] = json.loads((self.folder / "packages.json").read_text())
        return packages[EMULATOR].partition(":")[2].partition("+")[0]


def find_parts() -> Parts | None:
    """The parts, if they were fetched before."""
    folder = default_root() / "parts" / _key()
    return Parts(folder) if folder.is_dir() else None


def parts(progress: Progress | None = None) -> Parts:
    """The parts, fetched the first time: about 90 MB from Debian and 50 MB from PyPI.

    Raises:
        DeviceError: no apt or pip here, or no way to their servers.
    """
    found = find_parts()
    if found is not None:
        return found
    _refuse_missing_tools()
    progress = progress or Silence()
    with (
        Cache(default_root()).adopt("parts") as (scratch, publish),
        progress.step("Fetching ARM64 parts, once", total=4) as step,
    ):
        _fetch(scratch, step)
        return Parts(publish(_key()))


def _key() -> str:
    return "arm64-" + digest(RELEASE, EMULATOR, LIBRARIES, _wheels(), GUARD)[:16]


def _wheels() -> list[str]:
    return [f"{package}=={version(package)}" for package in WHEELS]


def _refuse_missing_tools() -> None:
    for tool in ("apt-get", "dpkg", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise DeviceError(
                f"{tool} is missing: the ARM64 emulator and libraries are Debian packages. "
                "Emulate on Debian or Ubuntu"
            )
    if not KEYRING.exists():
        raise DeviceError(
            f"{KEYRING} is missing: Debian's packages cannot be checked. "
            "Install debian-archive-keyring"
        )


def _fetch(scratch: Path, step: Step) -> None:
    step.advance("Debian's index")
    apt = _apt(scratch / "apt")
    _run([*apt, "update"], scratch)
    step.advance("Debian's packages")
    downloads = scratch / "downloads"
    downloads.mkdir()
    _run([*apt, "download", f"{EMULATOR}:{_host()}", *LIBRARIES], downloads)
    _unpack(downloads, scratch)
    step.advance("wheels")
    _run([*_pip(), "--target", str(scratch / "site"), *_wheels()], scratch)
    (scratch / "site" / USELESS).unlink(missing_ok=True)
    (scratch / "site" / "sitecustomize.py").write_text(GUARD)
    step.advance("byte code")
    # Compiled here: the emulated Python is of the same release, and slower at it.
    compileall.compile_dir(scratch / "root/usr/lib/python3.11", quiet=2)
    for done in (downloads, scratch / "apt"):
        shutil.rmtree(done)


def _apt(state: Path) -> list[str]:
    """apt-get with an index of its own: it neither needs rights nor touches this system's."""
    for folder in ("lists/partial", "cache/archives/partial", "none"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    architectures = sorted({"arm64", _host()})
    source = f"deb [arch={','.join(architectures)} signed-by={KEYRING}] "
    (state / "sources.list").write_text("".join(f"{source}{where}\n" for where in SOURCES))
    options = {
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": state / "none",
        # Whatever this system prefers, it prefers for itself.
        "Dir::Etc::preferences": state / "status",
        "Dir::Etc::preferencesparts": state / "none",
        "APT::Default-Release": "",
        "APT::Architecture": "arm64",
        "APT::Update::Error-Mode": "any",
        # Root's apt would change to a user who may not write here.
        "APT::Sandbox::User": "root",
    }
    words = [f"-o{key}={value}" for key, value in options.items()]
    words += [f"-oAPT::Architectures::={name}" for name in architectures]
    return ["apt-get", "-q", *words]


def _host() -> str:
    """What Debian calls this machine's processor, such as "amd64"."""
    done = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True)
    return done.stdout.strip()


def _pip() -> list[str]:
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    python = ["--implementation", "cp", "--python-version", "3.11"]
    only = ["--only-binary", ":all:", "--no-deps", "--quiet", "--disable-pip-version-check"]
    return [sys.executable, "-m", "pip", "install", *only, *python, *platforms]


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        wrong = [line for line in said if line.startswith(("E:", "ERROR:"))]
        reason = (wrong or said or [f"exit code {done.returncode}"])[0]
        name = "pip" if "pip" in command else command[0]
        raise DeviceError(
            f"the ARM64 parts cannot be fetched; {name} says: {reason}. They come from "
            "deb.debian.org and PyPI, once: is this machine online?"
        )


def _unpack(downloads: Path, scratch: Path) -> None:
    """The libraries whole; of the emulators, which are hundreds of megabytes, the one."""
    packages = {}
    for package in sorted(downloads.glob("*.deb")):
        name, release, _ = package.name.split("_", 2)
        packages[name] = release.replace("%3a", ":")
        if name == EMULATOR:
            _unpack_one(package, "./usr/bin/qemu-aarch64-static", scratch)
        else:
            _run(["dpkg-deb", "-x", str(package), str(scratch / "root")], scratch)
    (scratch / "packages.json").write_text(json.dumps(packages, indent=1, sort_keys=True))


def _unpack_one(package: Path, member: str, folder: Path) -> None:
    program = folder / member
    program.parent.mkdir(parents=True)
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as unpacked,
        tarfile.open(fileobj=unpacked.stdout, mode="r|") as archive,
    ):
        for found in archive:
            content = archive.extractfile(found) if found.name == member else None
            if content is not None:
                program.write_bytes(content.read())
    program.chmod(0o755)


class Lines:
    """Progress as plain lines on stderr, for what starts without anybody having asked."""

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Lines]:
        self.say(f"{title} …")
        yield self

    def advance(self, note: str = "") -> None:
        self.say(f"  {note}")

    def say(self, text: str) -> None:
        print(text, file=sys.stderr)


if __name__ == "__main__":
    print(parts(Lines()).folder)
