"""One libvirt host: namespaces, cgroups and folders of its own, a core of its own, virtlogd and libvirtd.

The host is a sleeping process (`inside.py hold`) whose namespaces the others enter; each process of the host sits in
the host's cgroups, so its CPU affinity is the host's and none is ever lost sight of.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import IO, Any, Final
from uuid import NAMESPACE_DNS, uuid5

from deploy.lab.cgroup import Group
from deploy.lab.command import ENVIRONMENT
from deploy.lab.errors import LabError
from deploy.lab.network import bridge_mac
from deploy.lab.virsh import Virsh
from deploy.lab.wait import until

_INSIDE: Final = (sys.executable, "-I", "-S", str(Path(__file__).with_name("inside.py")))
_METER: Final = (sys.executable, "-I", "-S", str(Path(__file__).with_name("meter.py")))
_PRIVATE: Final = ("/run/libvirt", "/var/lib/libvirt", "/etc/libvirt", "/var/log/libvirt", "/var/cache/libvirt")
_PATHS: Final = {path: path.strip("/").replace("/", "-") for path in _PRIVATE}
# Without a system bus libvirt asks no machine registry, whose scopes would lie outside of the host's cgroups.
_NO_BUS: Final = {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent"}
Output = int | IO[Any] | None

_LIBVIRTD_CONF: Final = """\
host_uuid = "{uuid}"
listen_tls = 0
listen_tcp = 1
listen_addr = "{address}"
# The bridge leads nowhere else: nobody but this machine's root can reach it.
auth_tcp = "none"
"""
_QEMU_CONF: Final = """\
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = [ "cpu", "cpuacct", "cpuset", "memory", "blkio" ]
migration_address = "{address}"
migration_host = "{address}"
"""


def spawn(
    argv: Sequence[str],
    group: Group,
    *,
    target: int = 0,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    output: Output = None,
) -> subprocess.Popen[bytes]:
    """Start a process in a group's cgroups and, given a target, in that process's namespaces; the pid is its own."""
    words = [*_INSIDE, "enter", *(f"--group={door}" for door in group.doors())]
    words += [f"--target={target}", f"--cwd={cwd or Path.cwd()}", "--", *argv]
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        env={**ENVIRONMENT, **(env or {})},
        start_new_session=True,  # Ctrl-C is for the lab, which stops them in order
    )


def stop_all(processes: list[subprocess.Popen[bytes]], grace_s: float = 5.0) -> None:
    """End children together, by SIGTERM and after `grace_s` by SIGKILL, collect them and forget them."""
    for process in processes:
        process.terminate()
    while processes:
        process = processes[-1]
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        processes.pop()


@dataclass
class Host:
    """One libvirt host of the lab; `folder` holds its private folders and logs."""

    name: str
    address: IPv4Address
    cpu: int
    group: Group
    folder: Path
    pid: int = 0
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def uri(self) -> str:
        """Where this host's libvirtd answers, from this machine and from the other host."""
        return f"qemu+tcp://{self.address}/system"

    @property
    def virsh(self) -> Virsh:
        """Return virsh, connected to this host."""
        return Virsh(self.uri)

    def path(self, inside: str) -> Path:
        """Return where a path below one of the host's private folders lies for this machine."""
        for private, name in _PATHS.items():
            if inside == private or inside.startswith(f"{private}/"):
                return self.folder / name / inside.removeprefix(private).lstrip("/")
        raise ValueError(f"{inside} is no private path of a host")

    def popen(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        output: Output = None,
    ) -> subprocess.Popen[bytes]:
        """Start a process on the host; `output` takes standard output and error, else they are this process's."""
        child = spawn(argv, self.group, target=self.pid, cwd=cwd, env=env, output=output)
        self.children.append(child)
        return child

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 30.0,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Run a command on the host and return what it printed, errors too; raises LabError when it fails."""
        child = spawn(argv, self.group, target=self.pid, cwd=cwd, env=env, output=subprocess.PIPE)
        try:
            raw, _ = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            child.kill()
            child.communicate()
            raise LabError(f"{self.name}: {' '.join(argv)}: no answer within {timeout_s:g} s") from error
        text = raw.decode(errors="replace")
        if child.returncode:
            raise LabError(f"{self.name}: {' '.join(argv)}: {text.strip() or child.returncode}")
        return text

    def create(self, shares: int, names: Mapping[str, IPv4Address]) -> None:
        """Make the cgroups, folders and namespaces; `names` are all hosts, for /etc/hosts."""
        self.group.create(cpus=str(self.cpu), shares=shares)
        self._write_folders(names)
        with (self.folder / "holder.log").open("ab") as log:
            holder = subprocess.Popen(
                [*_INSIDE, "hold", json.dumps(self._spec())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=ENVIRONMENT,
                start_new_session=True,
            )
        self.daemons.append(holder)
        self.pid = holder.pid
        if not _says_ready(holder, 10.0):
            raise LabError(f"{self.name}: no namespaces: {(self.folder / 'holder.log').read_text().strip()}")
        words = [*_METER, str(self._stat), str(self.group.accounts()), str(self.cpu)]
        with (self.folder / "meter.log").open("ab") as log:
            self.daemons.append(spawn(words, self.group, cwd=Path("/"), output=log))

    def configure_network(self, prefix: int) -> None:
        """Bring up loopback, eth0 and the bridge br0 that guests' interfaces join."""
        for words in (
            "link set lo up",
            f"link add br0 address {bridge_mac(self.address)} type bridge",
            "link set eth0 master br0 up",
            f"address add {self.address}/{prefix} dev br0",
            "link set br0 up",
        ):
            self.run(["ip", *words.split()])

    def start_daemons(self) -> None:
        """Start virtlogd and libvirtd in the foreground and wait until libvirtd answers; raises LabError."""
        self._start_daemon("virtlogd")
        self._start_libvirtd()

    def restart_libvirtd(self) -> None:
        """Kill libvirtd as a crash would, and start it anew: the guests run on meanwhile; raises LabError."""
        daemon = self.daemons.pop()
        daemon.kill()
        daemon.wait(10)
        self._start_libvirtd()

    def _start_libvirtd(self) -> None:
        daemon = self._start_daemon("libvirtd", "--listen")
        until(lambda: self._answers(daemon), 60, f"{self.name}: libvirtd answers at {self.uri}", step_s=0.1)

    def _start_daemon(self, *argv: str) -> subprocess.Popen[bytes]:
        words = [*argv, "--pid-file", f"/run/libvirt/{argv[0]}.pid"]
        with (self.folder / f"{argv[0]}.log").open("ab") as log:
            daemon = spawn(words, self.group, target=self.pid, cwd=Path("/"), env=_NO_BUS, output=log)
        self.daemons.append(daemon)
        return daemon

    def stop(self, grace_s: float = 5.0) -> None:
        """End all of the host's processes: what popen started, then guests, then the daemons and the namespaces."""
        stop_all(self.children, grace_s)
        self.group.kill(guests_only=True)
        self.group.kill()
        stop_all(self.daemons, grace_s)

    def _answers(self, daemon: subprocess.Popen[bytes]) -> bool:
        if daemon.poll() is not None:
            raise LabError(f"{self.name}: libvirtd ended: {(self.folder / 'libvirtd.log').read_text()[-800:]}")
        with suppress(LabError):
            self.virsh("uri", timeout_s=5)
            return True
        return False

    @property
    def _stat(self) -> Path:
        return self.folder / "proc-stat"

    def _write_folders(self, names: Mapping[str, IPv4Address]) -> None:
        for name in _PATHS.values():
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.path("/var/log/libvirt/qemu").mkdir(exist_ok=True)  # the guests' consoles
        hosts = "".join(f"{address} {name}\n" for name, address in names.items())
        self._stat.write_text(Path("/proc/stat").read_text())
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        words = {"address": str(self.address), "uuid": str(uuid5(NAMESPACE_DNS, f"{self.group.name}.virtpilot.dev"))}
        self.path("/etc/libvirt/libvirtd.conf").write_text(_LIBVIRTD_CONF.format_map(words))
        self.path("/etc/libvirt/qemu.conf").write_text(_QEMU_CONF.format_map(words))
        self.path("/etc/libvirt/virtlogd.conf").write_text("")

    def _spec(self) -> dict[str, object]:
        for private in _PRIVATE:
            Path(private).mkdir(parents=True, exist_ok=True)
        outer, inner = self.group.outer_doors(), self.group.doors()
        return {
            "hostname": self.name,
            "outer": [str(path) for path in outer],
            "inner": [str(path) for path in inner if path not in outer],
            "delegations": [(str(path), text) for path, text in self.group.delegations()],
            "mounts": self._mounts(),
            "binds": [
                *((str(self.folder / name), private) for private, name in _PATHS.items()),
                (str(self.folder / "hosts"), "/etc/hosts"),
                (str(self._stat), "/proc/stat"),
            ],
        }

    def _mounts(self) -> list[tuple[str, str, str, str]]:
        top = Path("/sys/fs/cgroup")
        mounted = self.group.mounted
        # A parent comes before what is mounted below it; only a v2-only layout is one mount at the top itself.
        shell = [] if any(one.path == top for one in mounted) else [("tmpfs", str(top), "tmpfs", "mode=755")]
        kinds = {1: "cgroup", 2: "cgroup2"}
        ordered = sorted(mounted, key=lambda one: len(one.path.parts))
        return shell + [(kinds[one.version], str(one.path), kinds[one.version], one.options) for one in ordered]


def _says_ready(holder: subprocess.Popen[bytes], timeout_s: float) -> bool:
    stream = holder.stdout
    if stream is None:
        return False
    with stream:
        readable, _, _ = select.select([stream], [], [], timeout_s)
        return bool(readable) and os.read(stream.fileno(), 64).startswith(b"ready")
