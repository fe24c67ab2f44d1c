"""Boards to test with: sshd or adbd in a namespace of its own, with its own disk and tools."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from devices import parts

from edgebuild.catalog import device
from edgebuild.vocabulary.contracts import Device

PARTS = parts.folder()
LIBRARIES = PARTS / "usr/lib/x86_64-linux-gnu"
PLATFORM_TOOLS = PARTS / "usr/lib/android-sdk/platform-tools"
SETUP = """
set -e
ip link set lo up
# Nothing that the tests have made here is there, but the board's own folder.
mount --bind "$1" /mnt
mount -t tmpfs tmpfs "$3"
mkdir -p "$1"
mount --move /mnt "$1"
mount -t tmpfs -o size="$2" tmpfs "$1/disk"
mount --bind "$1/passwd" /etc/passwd
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
echo ready
# The first process of a namespace has to reap the orphans.
while :; do sleep 3600 & wait; done
"""


@dataclass
class Board:
    """A namespace with one interface, its loopback; nothing outside can reach what runs within."""

    url: str
    folder: Path
    process: int
    server: Sequence[str]

    @property
    def disk(self) -> Path:
        """The device's files, as they are seen from here."""
        return Path(f"/proc/{self.process}/root{self.folder}/disk")

    def place(self, name: str) -> str:
        """A file of the disk, as it is called on the device."""
        return f"{self.folder}/disk/{name}"

    def device(self) -> Device:
        return device(self.url)

    def inside(self, *words: str) -> str:
        done = subprocess.run([*self._enter, *words], capture_output=True, text=True, check=False)
        return done.stdout

    def start(self) -> None:
        """Starts sshd or adbd, and waits until it listens."""
        log = (self.folder / "server.log").open("a")
        environment = {
            "LD_LIBRARY_PATH": f"{LIBRARIES}:{LIBRARIES}/android",
            "PATH": self.tools,
            "XDG_CACHE_HOME": f"{self.folder}/disk",
            "HOME": str(self.folder),
        }
        subprocess.Popen(
            [*self._enter, *self.server],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        until(self._listens)

    @property
    def _enter(self) -> list[str]:
        own = shutil.which("nsenter") or ""
        return [own, f"--target={self.process}", "--net", "--mount", "--pid"]

    def _listens(self) -> bool:
        """Whether a socket of IPv4 or IPv6 is in state LISTEN (0A)."""
        tables = self.inside("cat", "/proc/net/tcp", "/proc/net/tcp6")
        return any(line.split()[3:4] == ["0A"] for line in tables.splitlines())

    @property
    def tools(self) -> str:
        return (self.folder / "path").read_text()

    def kill_server(self) -> None:
        """As when it crashes, or the device is restarted: every connection ends."""
        name = Path(self.server[0]).name
        kill([*self.processes(self.server[0]), *self.processes(f"{name}: ")])

    def unplug(self) -> None:
        self.inside("ip", "link", "set", "lo", "down")

    def plug_in(self) -> None:
        self.inside("ip", "link", "set", "lo", "up")

    def processes(self, words: str) -> list[int]:
        """Our ids of the processes within whose command line begins with these words."""
        here = os.readlink(f"/proc/{self.process}/ns/pid")
        return [process for process in _all() if _is(process, here, words)]

    def connections(self) -> list[int]:
        """The processes that serve one connection each."""
        return [*self.processes("sshd: root"), *self.processes("sshd: [accepted]")]


def until(is_so: Callable[[], object], seconds: float = 30.0) -> None:
    """Waits for something that happens soon."""
    ends = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.02)


def kill(processes: Sequence[int]) -> None:
    for process in processes:
        # One may have ended the other.
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _all() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _is(process: int, namespace: str, words: str) -> bool:
    try:
        line = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        return line.startswith(words) and os.readlink(f"/proc/{process}/ns/pid") == namespace
    except OSError:
        return False


@contextmanager
def ssh_board(
    folder: Path,
    patch: pytest.MonkeyPatch,
    *,
    tools: str = "coreutils",
    disk: str = "200m",
    python: str = sys.executable,
) -> Iterator[Board]:
    """An sshd that trusts one key, and an `ssh` on PATH that knows host and key."""
    _skip_without_parts()
    with _namespace(folder, tools, disk, python) as process:
        for name in ("host", "user", "stranger"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(words, check=True)
        shutil.copy(folder / "user.pub", folder / "authorized_keys")
        host = (folder / "host.pub").read_text()
        (folder / "known_hosts").write_text(f"127.0.0.1 {host}")
        path = (folder / "path").read_text()
        _write_config(
            folder / "sshd_config",
            f"HostKey {folder}/host",
            f"AuthorizedKeysFile {folder}/authorized_keys",
            f"SetEnv PATH={path} XDG_CACHE_HOME={folder}/disk",
            *("ListenAddress 127.0.0.1", "PermitRootLogin yes", "StrictModes no", "UsePAM no"),
            *("PasswordAuthentication no", "PidFile none", "MaxStartups 100"),
        )
        _write_config(
            folder / "ssh_config",
            f"IdentityFile {folder}/user",
            f"UserKnownHostsFile {folder}/known_hosts",
            *("IdentitiesOnly yes", "GlobalKnownHostsFile none"),
        )
        _wrap(folder, patch, process, "ssh", f"{shutil.which('ssh')} -F {folder}/ssh_config")
        server = [str(PARTS / "usr/sbin/sshd"), "-D", "-e", "-f", f"{folder}/sshd_config"]
        board = Board("ssh://root@127.0.0.1", folder, process, server)
        board.start()
        yield board


@contextmanager
def adb_board(
    folder: Path,
    patch: pytest.MonkeyPatch,
    *,
    tools: str = "coreutils",
    disk: str = "200m",
    python: str = sys.executable,
) -> Iterator[Board]:
    """Debian's adbd, a root shell without a key: it and adb's own server stay in the namespace."""
    _skip_without_parts()
    with _namespace(folder, tools, disk, python) as process:
        libraries = f"LD_LIBRARY_PATH={LIBRARIES}:{LIBRARIES}/android"
        enter = f"env HOME={folder} {libraries} {PLATFORM_TOOLS}/adb"
        _wrap(folder, patch, process, "adb", enter)
        board = Board("adb://127.0.0.1:5555", folder, process, [f"{PLATFORM_TOOLS}/adbd"])
        board.start()
        subprocess.run(["adb", "start-server"], capture_output=True, check=True)
        try:
            yield board
        finally:
            subprocess.run(["adb", "kill-server"], capture_output=True, check=False)


def _skip_without_parts() -> None:
    if reason := _reason_to_skip():
        pytest.skip(reason)


def _reason_to_skip() -> str:
    """Why no board can be made here; empty where one can."""
    if not PARTS.is_dir():
        return f"no parts in {PARTS}: `make test-devices` fetches them"
    if os.geteuid() != 0:
        return "only root can make network namespaces with disks of their own"
    if missing := [name for name in ("ip", "nsenter", "unshare", "ssh") if not shutil.which(name)]:
        return f"not installed here: {', '.join(missing)}"
    tried = subprocess.run(["unshare", "-n", "-m", "true"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else "this machine allows no namespaces"


def _write_config(path: Path, *lines: str) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


def _wrap(
    folder: Path,
    patch: pytest.MonkeyPatch,
    process: int,
    name: str,
    command: str,
) -> None:
    """Puts a program on PATH that runs within the namespace's network."""
    programs = folder / "programs"
    programs.mkdir()
    enter = f"nsenter --net=/proc/{process}/ns/net"
    (programs / name).write_text(f'#!/bin/sh\nexec {enter} {command} "$@"\n')
    (programs / name).chmod(0o755)
    patch.setenv("PATH", f"{programs}:{os.environ['PATH']}")


@contextmanager
def _namespace(folder: Path, tools: str, disk: str, python: str) -> Iterator[int]:
    """Everything in it ends with it: network, mounts, processes."""
    (folder / "disk").mkdir(parents=True)
    path = _install_tools(folder, tools, python)
    (folder / "path").write_text(path)
    (folder / "passwd").write_text(
        f"root:x:0:0:root:{folder}/disk:{folder}/tools/sh\nsshd:x:101:65534::/run/sshd:/bin/false\n"
    )
    own = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    holder = subprocess.Popen(
        ["unshare", *own, "sh", "-c", SETUP, "sh", str(folder), disk, str(folder.parent)],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text()
        yield int(children)
    finally:
        holder.kill()
        holder.wait()


def _install_tools(folder: Path, tools: str, python: str) -> str:
    """The device's PATH: one folder of links, and the command that starts its Python, if any."""
    programs = folder / "tools"
    programs.mkdir()
    for name, program in _programs(tools).items():
        (programs / name).symlink_to(program)
    if python:
        (programs / "python3").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
        (programs / "python3").chmod(0o755)
    return str(programs)


def _programs(tools: str) -> dict[str, Path]:
    busybox, toybox = PARTS / "bin/busybox", PARTS / "bin/toybox"
    match tools:
        case "busybox":
            return dict.fromkeys(_names(busybox, "--list"), busybox)
        case "toybox":
            # As on Android, whose toybox has the dd that Debian's lacks.
            own = dict.fromkeys(_names(toybox), toybox)
            return {**own, "dd": busybox, "sh": PARTS / "bin/mksh"}
    found = Path("/usr/bin").iterdir()
    return {path.name: path for path in found if not path.name.startswith("python")}


def _names(*command: str | Path) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
