"""One guest of the lab: its definition, its start, and the control port that changes its load while it runs."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from string import Template
from typing import Final
from uuid import NAMESPACE_DNS, uuid5
from xml.sax.saxutils import quoteattr

from deploy.lab.errors import GuestAway, LabError
from deploy.lab.host import Host
from deploy.lab.image import Image
from deploy.lab.wait import until
from virtpilot.clock import SECOND, SystemClock

TAGS_NAMESPACE: Final = "https://virtpilot.dev/tags/1"
_PORTS: Final = "/var/lib/libvirt/qemu/lab"
_BOOT_S: Final = 150  # some 5 s of an emulated CPU, times all that boot on one core at once
# No timer that an idle guest would wake for, no probe that emulation makes slow.
_KERNEL_WORDS: Final = (
    "console=ttyS0 quiet nowatchdog mitigations=off random.trust_cpu=on tsc=reliable panic=1 cryptomgr.notests"
)

_XML: Final = Template("""\
<domain type='$type'>
  <name>$name</name>
  <uuid>$uuid</uuid>
  <metadata><vp:tags xmlns:vp=$namespace $tags/></metadata>
  <memory unit='MiB'>$memory</memory>
  $balloon
  <vcpu placement='static' current='$vcpus'>$vcpus_max</vcpu>
  <cputune><shares>$shares</shares></cputune>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>$kernel</kernel>
    <initrd>$initramfs</initrd>
    <cmdline>$words</cmdline>
  </os>
  <features><acpi/></features>
  $cpu
  <clock offset='utc'><timer name='hpet' present='no'/></clock>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <controller type='virtio-serial'/>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file=$disk/>
      <target dev='vda' bus='virtio'/>
      <readonly/>
    </disk>
    <interface type='bridge'>
      <mac address='$mac'/>
      <source bridge='br0'/>
      <model type='virtio'/>
      <rom enabled='no'/>
    </interface>
    <serial type='file'><source path='/var/log/libvirt/qemu/$name.console'/></serial>
    <channel type='unix'>
      <source mode='bind' path='$port'/>
      <target type='virtio' name='dev.virtpilot.load'/>
    </channel>
    $agent
    <memballoon model='virtio'><stats period='2'/></memballoon>
  </devices>
</domain>
""")
_AGENT: Final = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"


@dataclass(frozen=True)
class GuestPlan:
    """What a guest is: where it starts, its load in percent of a vCPU, its tags, its size, QEMU's agent inside.

    Of its memory it has `balloon_mib` at first; 0: all of it.
    """

    name: str
    host: str
    load: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)
    memory_mib: int = 128
    balloon_mib: int = 0
    vcpus: int = 1
    vcpus_max: int = 2
    shares: int = 1024
    type: str = "qemu"
    agent: bool = False

    def uuid(self, lab: str) -> str:
        """Return the guest's UUID: the same on every bring-up of the same lab."""
        return str(uuid5(NAMESPACE_DNS, f"{self.name}.{lab}.virtpilot.dev"))

    def mac(self, lab: str) -> str:
        """Return the hardware address of the guest's interface: the same on every bring-up, too."""
        digest = sha256(self.uuid(lab).encode()).hexdigest()
        return f"52:54:00:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}"

    def xml(self, lab: str, image: Image) -> str:
        """Return the libvirt domain definition."""
        return _XML.substitute(
            type=self.type,
            name=self.name,
            uuid=self.uuid(lab),
            namespace=quoteattr(TAGS_NAMESPACE),
            tags=" ".join(f"{key}={quoteattr(value)}" for key, value in sorted(self.tags.items())),
            memory=self.memory_mib,
            balloon=f"<currentMemory unit='MiB'>{self.balloon_mib}</currentMemory>" if self.balloon_mib else "",
            vcpus=self.vcpus,
            vcpus_max=self.vcpus_max,
            shares=self.shares,
            kernel=image.kernel,
            initramfs=image.initramfs,
            words=f"{_KERNEL_WORDS} virtpilot.load=0",
            cpu="<cpu mode='host-passthrough'/>" if self.type == "kvm" else "",
            disk=quoteattr(str(image.disk)),
            mac=self.mac(lab),
            port=port_path(self.name),
            agent=_AGENT if self.agent else "",
        )


def port_path(name: str) -> str:
    """Return where the host's side of a guest's control port lies, as the host sees it."""
    return f"{_PORTS}/{name}.sock"


class Guest:
    """A guest of a running lab; `where` finds the host that runs it now."""

    def __init__(self, plan: GuestPlan, lab: str, where: Callable[[str], Host]) -> None:
        self.plan = plan
        self.name = plan.name
        self.uuid = plan.uuid(lab)
        self._lab = lab
        self._where = where

    @property
    def host(self) -> Host:
        """The host that runs the guest just now; raises LabError when none does."""
        return self._where(self.name)

    def define(self, host: Host, image: Image) -> None:
        """Define the guest on a host."""
        xml = host.folder / f"{self.name}.xml"
        xml.write_text(self.plan.xml(self._lab, image))
        host.virsh.define(xml)

    def boot(self, host: Host) -> None:
        """Start the guest where it is defined; returns when it answers."""
        host.virsh("start", self.name, timeout_s=120)  # the first of a host has libvirtd ask QEMU what it can
        self.set_load(0, timeout_s=_BOOT_S)

    def destroy(self) -> None:
        """End the guest at once, like pulling its plug."""
        self.host.virsh("destroy", self.name)

    def domstats(self) -> dict[str, int | str]:
        """Return libvirt's statistics of the guest, from the host that runs it."""
        return self.host.virsh.domstats(self.name)

    def wake(self, *, timeout_s: float = 60.0) -> None:
        """Tell a guest that runs on with another's memory what time it is and who it is; raises LabError."""
        now_s = SystemClock().now_ns() // SECOND
        self._order(f"wake {now_s},{self.plan.mac(self._lab)}", timeout_s)

    def set_load(self, percent: int, *, timeout_s: float = 60.0) -> None:
        """Make the guest burn `percent` (0 to 100) of one vCPU; returns when it has said so; raises LabError."""
        if not 0 <= percent <= 100:
            raise ValueError(f"a load is 0 to 100 percent, not {percent}")
        self._order(f"load {percent}", timeout_s)

    def set_dirty(self, mib: int, *, timeout_s: float = 60.0) -> None:
        """Make the guest change so much of its memory all the time; returns when it has said so; raises LabError."""
        self._order(f"dirty {mib}", timeout_s)

    def set_deaf(self, deaf: bool, *, timeout_s: float = 60.0) -> None:
        """Make the guest ignore its power button, or not; returns when it has said so; raises LabError."""
        self._order(f"deaf {int(deaf)}", timeout_s)

    def see(self, *, timeout_s: float = 60.0) -> tuple[str, int]:
        """Return the CPUs that the guest's kernel uses, as a list, and its MemTotal in bytes; raises LabError."""
        cpus, size_kib = self.ask("see 0", timeout_s=timeout_s).split()[1:]
        return cpus, int(size_kib) * 1024

    def ask(self, words: str, *, timeout_s: float = 60.0) -> str:
        """Return what the guest answers to an order; asked again where nothing comes; raises LabError."""
        order, answers = f"{words} {secrets.token_hex(4)}", list[str]()
        until(lambda: self._answers(order, answers), timeout_s, f"{self.name} takes the order {order!r}", step_s=0.1)
        return answers[-1].rpartition(" ")[0]

    def _order(self, words: str, timeout_s: float) -> None:
        if (answer := self.ask(words, timeout_s=timeout_s)) != words:
            raise LabError(f"{self.name}: {words!r} was answered with {answer!r}")

    def _answers(self, order: str, answers: list[str]) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as port:
            port.settimeout(2.0)  # an order may get lost while the guest moves: asked again soon
            try:
                port.connect(str(self.host.path(port_path(self.name))))
                port.sendall(f"{order}\n".encode())
                answers += _heard(port, order.rpartition(" ")[2])
            except (OSError, GuestAway):  # not booted yet, or just moving: asked again until the deadline
                return False
        return bool(answers)


def _heard(port: socket.socket, token: str) -> list[str]:
    """Return the line that ends with an order's own token, once it has come."""
    heard = b""
    while chunk := port.recv(4096):
        heard += chunk
        *lines, _rest = heard.decode(errors="replace").split("\n")
        if found := [line for line in lines if line.endswith(f" {token}")]:
            return found[:1]
    return []


def port_folder(host: Host) -> Path:
    """Return the folder of the control ports on a host, for this machine."""
    return host.path(_PORTS)
