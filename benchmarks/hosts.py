"""Several hosts on one machine: network namespaces with addresses of their own, each of which can die whole.

    with Hosts(4) as (store, *nodes):
        process = nodes[0].start(["ray", "start", ...])
        nodes[0].kill()          # every process of that host, at once, with SIGKILL

Needs Linux, root and iproute2. The hosts share a bridge that nothing outside this machine can reach.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from seminar.errors import SeminarError, explain

PREFIX = "semi"
"""Of namespaces and interfaces; those may have 15 characters."""
SUBNET = "10.213.17"


class NoHosts(SeminarError):
    """This machine cannot make network namespaces."""


@dataclass(frozen=True)
class Host:
    """One namespace. address: reachable from the other hosts and from this machine."""

    name: str
    address: str

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Run a command on this host; its output goes to `log`."""
        with log.open("ab") as output:
            full = ["ip", "netns", "exec", self.name, *command]
            return subprocess.Popen(full, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def kill(self) -> int:
        """SIGKILL to every process of the host; how many there were."""
        killed = 0
        # Twice: one that was just being forked is not in the first list.
        for _ in range(2):
            for pid in _ip("netns", "pids", self.name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
                    killed += 1
        return killed

    def cut(self) -> None:
        """Nothing reaches the host, or leaves it, from now on: what its peers see of a host that lost power."""
        _ip("link", "set", _cable(self.name), "down")


class Hosts:
    """`count` hosts for the length of a `with`. NoHosts if the machine cannot."""

    def __init__(self, count: int) -> None:
        self._number = os.getpid() % 10_000
        self._bridge = f"{PREFIX}{self._number}b"
        self._hosts = [Host(f"{PREFIX}{self._number}h{i}", f"{SUBNET}.{10 + i}") for i in range(count)]

    def __enter__(self) -> list[Host]:
        if shutil.which("ip") is None or os.geteuid() != 0:
            raise NoHosts(explain("hosts", got="no root or no iproute2", expected="both", fix="run it as root on Linux"))
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self._hosts

    def __exit__(self, *error: object) -> None:
        for host in self._hosts:
            with contextlib.suppress(NoHosts):
                host.kill()
            for command in (("netns", "delete", host.name), ("link", "delete", _cable(host.name))):
                with contextlib.suppress(NoHosts):
                    _ip(*command)
        with contextlib.suppress(NoHosts):
            _ip("link", "delete", self._bridge)

    def _build(self) -> None:
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("address", "add", f"{SUBNET}.1/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for host in self._hosts:
            cable, inside = _cable(host.name), _cable(host.name) + "i"
            _ip("netns", "add", host.name)
            _ip("link", "add", cable, "type", "veth", "peer", "name", inside)
            _ip("link", "set", inside, "netns", host.name)
            _ip("link", "set", cable, "master", self._bridge)
            _ip("link", "set", cable, "up")
            within = ("-n", host.name)
            _ip(*within, "address", "add", f"{host.address}/24", "dev", inside)
            _ip(*within, "link", "set", inside, "up")
            _ip(*within, "link", "set", "lo", "up")


def _cable(name: str) -> str:
    return f"{name}c"


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        got = done.stderr.strip() or f"exit code {done.returncode}"
        raise NoHosts(explain(f"ip {' '.join(arguments)}", got=got, expected="success", fix="run it as root on Linux"))
    return done.stdout
