"""An LXC container on a host of the lab: a root of BusyBox alone, whose init burns a little CPU now and then."""

from __future__ import annotations

import shutil
from pathlib import Path
from string import Template
from typing import Final
from uuid import NAMESPACE_DNS, uuid5

from deploy.lab.host import Host
from deploy.lab.virsh import Virsh

DRIVER: Final = "libvirt/connection-driver/libvirt_driver_lxc.so"
_ROOTS: Final = "/var/lib/libvirt/containers"
_INIT: Final = """\
#!/bin/sh
while :; do
  i=0; while [ $i -lt 5000 ]; do i=$((i + 1)); done
  busybox sleep 0.2
done
"""
_XML: Final = Template("""\
<domain type='lxc'>
  <name>$name</name>
  <uuid>$uuid</uuid>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <os><type>exe</type><init>/init</init></os>
  <devices>
    <emulator>/usr/lib/libvirt/libvirt_lxc</emulator>
    <filesystem type='mount' accessmode='passthrough'><source dir='$root'/><target dir='/'/></filesystem>
    <interface type='bridge'><source bridge='br0'/></interface>
    <console type='pty'/>
  </devices>
</domain>
""")


def lacking() -> list[str]:
    """Return the packages that containers need beyond the lab's own."""
    return [] if any(Path("/usr/lib").glob(f"*/{DRIVER}")) else ["package libvirt-daemon-driver-lxc"]


class Container:
    """A container of a running lab's host, defined and started; ends with the lab at the latest."""

    def __init__(self, host: Host, name: str) -> None:
        self.name = name
        self.uuid = str(uuid5(NAMESPACE_DNS, f"{name}.{host.group.name}.virtpilot.dev"))
        self.uri = f"lxc+tcp://{host.address}/"
        self.virsh = Virsh(self.uri)
        self._host = host

    def start(self) -> None:
        """Make the container's root, define it and start it."""
        inside = f"{_ROOTS}/{self.name}"
        root = self._host.path(inside)
        for folder in ("bin", "dev", "proc", "sys", "tmp"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(shutil.which("busybox") or "", root / "bin" / "busybox")
        (root / "bin" / "sh").symlink_to("busybox")
        (root / "init").write_text(_INIT)
        (root / "init").chmod(0o755)
        xml = self._host.folder / f"{self.name}.xml"
        xml.write_text(_XML.substitute(name=self.name, uuid=self.uuid, root=inside))
        self.virsh.define(xml)
        self.virsh("start", self.name)

    def destroy(self) -> None:
        """End the container at once; its definition stays."""
        self.virsh("destroy", self.name)
