"""Fetches what the device tests need and no machine has: sshd, adbd, adb, busybox, toybox, mksh.

    python tests/devices/parts.py

Nothing is installed: Debian's packages are unpacked into ~/.cache/edgebuild/parts (or
$EDGEBUILD_PARTS), and only tests run them, each in a network namespace of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
FROM_BOOKWORM = (
    "openssh-server",
    "libwrap0",
    "busybox-static",
    "toybox",
    "mksh",
    "libprotobuf32",
    "libbrotli1",
    "liblz4-1",
    "libzstd1",
    "libusb-1.0-0",
    "libsystemd0",
)
FROM_BACKPORTS = (
    "adb",
    "adbd",
    "android-libbase",
    "android-libboringssl",
    "android-libcutils",
    "android-liblog",
    "android-libziparchive",
)


def folder() -> Path:
    """Where the parts are, or would be."""
    if explicit := os.environ.get("EDGEBUILD_PARTS"):
        return Path(explicit)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "edgebuild" / "parts" / "devices"


def main() -> int:
    if folder().is_dir():
        print(f"the parts are in {folder()}")
        return 0
    missing = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
    if missing or not KEYRING.exists():
        print(
            f"the parts come as Debian packages, and {', '.join(missing) or KEYRING} is not here: "
            "tests that need them are skipped",
            file=sys.stderr,
        )
        return 0
    folder().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder().parent, prefix=".part-") as scratch:
        fetch(Path(scratch))
        (Path(scratch) / "root").rename(folder())
    print(f"the parts are in {folder()}")
    return 0


def fetch(scratch: Path) -> None:
    """Downloads with an apt of our own, signatures checked, and unpacks."""
    options = apt_of_our_own(scratch)
    downloads = scratch / "downloads"
    downloads.mkdir()
    packages = [*FROM_BOOKWORM, *(f"{name}/bookworm-backports" for name in FROM_BACKPORTS)]
    for words in (["update", "-qq"], ["download", "-qq", *packages]):
        subprocess.run(["apt-get", *options, *words], cwd=downloads, check=True)
    for package in sorted(downloads.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(scratch / "root")], check=True)


def apt_of_our_own(scratch: Path) -> list[str]:
    """Options that leave the system's package lists alone."""
    for name in ("lists/partial", "cache/archives/partial"):
        (scratch / name).mkdir(parents=True)
    suites = ("bookworm", "bookworm-backports")
    lines = [f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n" for suite in suites]
    (scratch / "sources.list").write_text("".join(lines))
    settings = {
        "Dir::Etc::SourceList": scratch / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": scratch / "lists",
        "Dir::State::Status": "/dev/null",
        "Dir::Cache": scratch / "cache",
        "APT::Sandbox::User": "",
    }
    return [f"-o{name}={value}" for name, value in settings.items()]


if __name__ == "__main__":
    sys.exit(main())
