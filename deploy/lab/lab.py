"""The lab: libvirt hosts with their guests, a broker and a store on this one machine.

bring_up → claim the name → bridge → hosts (cgroups, namespaces, cables, daemons) → servers → guests → loads
down     → what was started here → guests → daemons → devices → cgroups → folder
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Network
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self, TypeVar

from deploy.lab import image, servers, state
from deploy.lab.asleep import sleeper_of
from deploy.lab.cgroup import Group, hierarchies
from deploy.lab.errors import GuestAway, LabError, LabMissing
from deploy.lab.guest import Guest, GuestPlan, port_folder
from deploy.lab.host import Host, Output, spawn, stop_all
from deploy.lab.network import Bridge, free_network, free_port, routed_networks
from deploy.lab.plan import TWO

T = TypeVar("T")

# Command → the Debian package that brings it.
NEEDED: Final = {
    "mosquitto": "mosquitto",
    "victoria-metrics": "victoria-metrics",
    "libvirtd": "libvirt-daemon-system",
    "virtlogd": "libvirt-daemon-system",
    "virsh": "libvirt-clients",
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "ip": "iproute2",
    "cpio": "cpio",
    "modprobe": "kmod",
}
_DRIVER: Final = "libvirt/connection-driver/libvirt_driver_qemu.so"
# A host's weight against what else runs on its core, where a busy task outside of the lab has 1024: beside a busy
# desktop the lab still measures itself. Much more, and the virsh that asks about a saturated host waits for seconds.
_SHARES: Final = 1024 * 64


def missing(hosts: int = 2) -> list[str]:
    """Return what this machine lacks for a lab of so many hosts, in words; empty when it can come up.

    One host is at home on one CPU; more of them show nothing on one, and two are enough for any number.
    """
    if sys.platform != "linux":
        return ["Linux"]
    lacking = ["root"] if os.geteuid() else []
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    packages = {package for command, package in NEEDED.items() if not shutil.which(command, path=path)}
    if not any(Path("/usr/lib").glob(f"*/{_DRIVER}")):
        packages.add("libvirt-daemon-driver-qemu")
    if not any(Path("/boot").glob("vmlinuz-*-cloud-amd64")):
        packages.add("linux-image-cloud-amd64")
    lacking += [f"package {package}" for package in sorted(packages)]
    return lacking if len(os.sched_getaffinity(0)) >= min(hosts, 2) else [*lacking, "a second CPU"]


class Lab:
    """A lab that is up; as a context manager it is removed at the end, whatever happened."""

    def __init__(self, name: str, network: IPv4Network, plans: Sequence[GuestPlan], kept_state: state.State) -> None:
        mounted = hierarchies()
        self.name = name
        self.folder = state.folder_of(name)
        self.bridge = Bridge(name, network)
        self.control = Group(f"{state.group_prefix(name)}control", mounted)
        self.hosts: dict[str, Host] = {}
        self.guests = {plan.name: Guest(plan, name, self._host_of) for plan in plans}
        self._children: list[subprocess.Popen[bytes]] = []
        self._servers: list[subprocess.Popen[bytes]] = []
        self._state = kept_state
        for number, (host, cpu) in enumerate(sorted(kept_state.cores.items()), start=1):
            group = Group(f"{state.group_prefix(name)}{host}", mounted)
            self.hosts[host] = Host(host, self.bridge.host_address(number), cpu, group, self.folder / host)

    @property
    def broker_host(self) -> str:
        """The broker's address, the same for the hosts and for this machine."""
        return self._state.broker[0]

    @property
    def broker_port(self) -> int:
        """The broker's port."""
        return self._state.broker[1]

    @property
    def store_url(self) -> str:
        """VictoriaMetrics, from this machine."""
        return self._state.store_url

    def guest(self, name: str) -> Guest:
        """Return a guest; raises LabError for a name that the lab does not know."""
        try:
            return self.guests[name]
        except KeyError:
            raise LabError(f"no guest {name!r} in the lab: {', '.join(self.guests)}") from None

    def where(self, name: str) -> str:
        """Return the name of the host that runs the guest, as the hosts' libvirtd say; raises LabError for none."""
        return self._host_of(name).name

    def domstats(self, name: str) -> dict[str, int | str]:
        """Return libvirt's statistics of a guest, wherever it runs."""
        return self.guest(name).domstats()

    def migrate(self, name: str, target: str) -> None:
        """Live-migrate a guest to a host through virsh; returns when it runs there."""
        self._host_of(name).virsh.migrate(name, self.hosts[target].uri)

    def popen(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        output: Output = None,
    ) -> subprocess.Popen[bytes]:
        """Start a process on this machine that ends with the lab: a controller, a writer."""
        child = spawn(argv, self.control, cwd=cwd, env=env, output=output)
        self._children.append(child)
        return child

    def keep(self) -> None:
        """Leave the lab up when this process ends; `python -m deploy.lab down` removes it."""
        self._state.kept = True
        self._state.save()

    def down(self) -> None:
        """Remove all of the lab; harmless when it is gone already; raises LabError when something stays."""
        with _undisturbed():
            stop_all(self._children)
            for host in self.hosts.values():
                host.stop()
            self.control.kill()
            stop_all(self._servers)
            state.tear_down(self.name)

    def leftovers(self) -> list[str]:
        """Return what of the lab is on this machine: nothing after `down`."""
        return state.leftovers(self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._state.kept:
            self.down()

    def _host_of(self, name: str) -> Host:
        for host in self.hosts.values():
            if name in host.virsh.running():
                return host
        raise GuestAway(f"no host runs {name!r}")

    def raise_hosts(self) -> None:
        """Make bridge, hosts and cables, and start the daemons."""
        addresses = {name: host.address for name, host in self.hosts.items()}
        self.bridge.create()
        for number, host in enumerate(self.hosts.values(), start=1):
            host.create(_SHARES, addresses)
            port_folder(host).mkdir(parents=True)
            self.bridge.join(number, host.pid)
        _each(self.hosts.values(), lambda host: host.configure_network(self.bridge.network.prefixlen))
        self._state.hosts = {
            name: {"address": str(host.address), "pid": host.pid, "cpu": host.cpu, "uri": host.uri}
            for name, host in self.hosts.items()
        }
        self._state.save()
        _each(self.hosts.values(), Host.start_daemons)

    def start_servers(self) -> None:
        """Start broker and store."""
        self.control.create(shares=_SHARES)
        address = str(self.bridge.address)
        self._state.broker = (address, free_port(address))
        self._broker = servers.start_broker(self.folder / "broker", *self._state.broker, self._start_server)
        port = free_port("127.0.0.1")
        servers.start_store(self.folder / "store", port, self._start_server)
        self._state.store_url = f"http://127.0.0.1:{port}"
        self._state.save()

    def _start_server(self, argv: Sequence[str], log: int) -> subprocess.Popen[bytes]:
        child = spawn(argv, self.control, cwd=Path("/"), output=log)
        self._servers.append(child)
        return child

    def restart_broker(self) -> None:
        """Kill the broker as a crash would, and start it anew; raises LabError."""
        self._servers.remove(self._broker)
        self._broker.kill()
        self._broker.wait(10)
        self._broker = servers.start_broker(self.folder / "broker", *self._state.broker, self._start_server)

    def start_guests(self, booted: image.Image) -> None:
        """Define and start the guests, wait until each answers, then give each its load.

        Those boot of whose kind none ever has, one of each, and fall asleep again: the others wake from that.
        """
        guests = list(self.guests.values())
        kinds = {guest.name: sleeper_of(guest.plan, booted) for guest in guests}
        first = {kind: guest for guest in guests if (kind := kinds[guest.name]) and not kind.exists}

        def start(guest: Guest) -> None:
            if kind := kinds[guest.name]:
                kind.wake(guest, self.hosts[guest.plan.host])
            else:
                guest.boot(self.hosts[guest.plan.host])

        _each(guests, lambda guest: guest.define(self.hosts[guest.plan.host], booted))
        _each(first.items(), lambda item: item[0].make(item[1], self.hosts[item[1].plan.host]))
        _each(guests, start)
        _each(guests, lambda guest: guest.set_load(guest.plan.load))  # now: a busy neighbour makes a slow boot
        self._state.guests = {one.name: {"uuid": one.uuid, "host": one.plan.host} for one in guests}
        self._state.save()


def bring_up(
    name: str = "lab",
    *,
    plans: Sequence[GuestPlan] = TWO,
    network: IPv4Network | None = None,
    cache: Path = image.DEFAULT_CACHE,
    say: Callable[[str], None] = lambda _: None,
) -> Lab:
    """Bring a lab up and return it, guests running and loaded; raises LabError, and then nothing is left behind."""
    lacking = missing(len({plan.host for plan in plans}))
    if lacking:
        raise LabMissing(f"the lab needs {', '.join(lacking)}")
    with state.one_comes_up(say):
        if state.abandoned(name):
            say(f"removing what a killed lab {name!r} left")
            state.tear_down(name)
        booted = image.build(cache, agent=any(plan.agent for plan in plans))
        network = network or free_network(routed_networks(), name)
        lab = Lab(name, network, plans, state.claim(name, str(network), Counter(plan.host for plan in plans)))
        with ExitStack() as taken_down:
            taken_down.callback(lab.down)
            lab.raise_hosts()
            say(f"hosts up: {', '.join(f'{host.name} {host.uri} on CPU {host.cpu}' for host in lab.hosts.values())}")
            lab.start_servers()
            say(f"broker {lab.broker_host}:{lab.broker_port}, store {lab.store_url}")
            lab.start_guests(booted)
            say(f"guests up: {', '.join(f'{one.name} on {one.plan.host}' for one in lab.guests.values())}")
            taken_down.pop_all()  # it is up: from here on whoever asked for it ends it
    return lab


def attach(name: str = "lab") -> Lab:
    """Return a lab that another process brought up; raises LabError when there is none."""
    found = state.load(name)
    if found is None or not found.hosts:
        raise LabError(f"no lab named {name!r} is up")
    # Who the guests are is written down once they run, and no more of them is asked from here.
    plans = [GuestPlan(guest, facts["host"]) for guest, facts in found.guests.items()]
    lab = Lab(name, IPv4Network(found.network), plans, found)
    for host, facts in found.hosts.items():
        lab.hosts[host].pid = int(facts["pid"])
    return lab


def _each(items: Iterable[T], work: Callable[[T], None]) -> None:
    """Do the work for all items side by side; raises the first error once the others are asked to end."""
    pool = ThreadPoolExecutor(max_workers=8)
    try:
        for future in [pool.submit(work, item) for item in items]:
            future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into SystemExit while the block runs, so that its lab is removed."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with _handlers(leave):
        yield


@contextmanager
def _undisturbed() -> Iterator[None]:
    with _handlers(signal.SIG_IGN):
        yield


@contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python sets handlers in the main thread only
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
