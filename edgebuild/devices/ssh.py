"""A machine behind ssh, reached by the user's own ssh with its keys and its ssh_config."""

from __future__ import annotations

import re

from edgebuild.devices._link import LinkDropped
from edgebuild.devices._remote import Remote
from edgebuild.vocabulary.contracts import Progress
from edgebuild.vocabulary.errors import DeviceError, InputError
from edgebuild.vocabulary.silence import Silence

ADDRESS = re.compile(
    r"((?:[^@\s-][^@\s]*@)?)(\[[0-9a-fA-F:.]+\]|[^\s:@/\[-][^\s:@/]*)(?::(\d+))?/?"
)
# A password cannot be asked for here, and a dead link must not look like a slow one.
OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
}
# ssh ends with 255 whatever has happened; only its words tell.
REASONS = {
    "REMOTE HOST IDENTIFICATION HAS CHANGED": (
        "its host key has changed. If that is right, run `ssh-keygen -R {host}` and connect once "
        "with `{command}`"
    ),
    "Host key verification failed": (
        "its host key is not known here. Compare it and accept it once with `{command}`"
    ),
    "Permission denied": (
        "it accepts none of your keys. Try `{command}`, and `ssh-copy-id` to add your key"
    ),
    "Could not resolve hostname": "no such host is known. Check the name, or your ssh_config",
    "Bad configuration option": "your ssh_config cannot be read: {complaint}",
    "Too many authentication failures": (
        "it accepts none of the first keys that were offered. Set IdentityFile in your ssh_config"
    ),
}
# What another try, later, may get past.
PASSING = {
    "Connection refused": "it refuses the connection. Does sshd run there, on this port?",
    "No route to host": "there is no route to it. Is it switched on?",
    "Network is unreachable": "its network cannot be reached from here",
    "timed out": "it does not answer. Is it switched on, and the address right?",
}


class Ssh(Remote):
    """`ssh://user@host:port`; the host may also be a name from ssh_config."""

    def __init__(self, address: str, progress: Progress | None = None) -> None:
        super().__init__(SshLink(address), progress or Silence())


class SshLink:
    """One process of ssh a call."""

    def __init__(self, address: str) -> None:
        found = ADDRESS.fullmatch(address)
        if not found:
            raise InputError(f"'ssh://{address}' is no address: write ssh://user@host:port")
        user, host, port = found.groups()
        self.name = f"ssh://{user}{host}" + (f":{port}" if port else "")
        self._host = host
        self._arguments = [*(["-p", port] if port else []), f"{user}{host.strip('[]')}"]

    def connect(self) -> None:
        """Every call connects by itself; who wants them faster sets ControlMaster."""

    def command(self, text: str) -> list[str]:
        options = [f"-o{name}={value}" for name, value in OPTIONS.items()]
        return ["ssh", "-T", *options, *self._arguments, text]

    def trouble(self, complaint: str) -> DeviceError:
        command = " ".join(["ssh", *self._arguments])
        for words, reason in REASONS.items():
            if words in complaint:
                last = complaint.splitlines()[-1]
                told = reason.format(host=self._host, command=command, complaint=last)
                return DeviceError(f"{self.name}: {told}")
        for words, reason in PASSING.items():
            if words in complaint:
                return LinkDropped(f"{self.name}: {reason}")
        last = (complaint.splitlines() or ["the answer broke off"])[-1]
        return LinkDropped(f"the link to {self.name} dropped ({last})")
