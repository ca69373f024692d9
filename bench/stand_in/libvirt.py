"""The libvirt library with guests that are made up: put this folder first on PYTHONPATH.

Everything is the real library but for the guests, STAND_IN_GUESTS of them, who tell what running QEMU guests do. As
from the real binding, each call makes new dicts with keys of their own.
"""

# ruff: noqa: N802 - the names are libvirt's
from __future__ import annotations

import itertools
import json
import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any, Final

_VCPUS: Final = 2
_HERE: Final = Path(__file__).parent


def _load() -> Any:
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE.resolve()]
    spec = PathFinder.find_spec("libvirt", elsewhere)
    if spec is None or spec.loader is None:
        raise ImportError("libvirt-python is not installed")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_real: Final = _load()
globals().update({name: value for name, value in vars(_real).items() if not name.startswith("_")})


def _template() -> str:
    """Return a running guest's statistics as JSON; @ stands for a number that grows."""
    memory = {"current": 4194304, "maximum": 8388608, "unused": 1048576, "available": 4046912, "usable": 2097152}
    more = {"rss": 3145728, "swap_in": 0, "swap_out": 0, "major_fault": "@", "minor_fault": "@", "disk_caches": 524288}
    stats: dict[str, Any] = {"state.state": 1, "state.reason": 1, "cpu.time": "@", "cpu.user": "@", "cpu.system": "@"}
    stats |= {f"balloon.{name}": value for name, value in (memory | more).items()}
    stats |= {"vcpu.current": _VCPUS, "vcpu.maximum": _VCPUS}
    for index in range(_VCPUS):
        stats |= {f"vcpu.{index}.{name}": "@" for name in ("time", "wait", "delay")} | {f"vcpu.{index}.state": 1}
    stats |= {"net.count": 1, "net.0.name": "vnet0"}
    stats |= {f"net.0.{way}.{what}": "@" for way in ("rx", "tx") for what in ("bytes", "pkts", "errs", "drop")}
    stats |= {"block.count": 1, "block.0.name": "vda", "block.0.path": "/var/lib/libvirt/images/guest.qcow2"}
    stats |= {f"block.0.{way}.{what}": "@" for way in ("rd", "wr") for what in ("reqs", "bytes", "times")}
    stats |= {"block.0.fl.reqs": "@", "block.0.fl.times": "@", "block.0.allocation": 10**9}
    stats |= {"block.0.capacity": 10**10, "block.0.physical": 10**9}
    return json.dumps(stats).replace('"@"', "@")


_TEXT: Final = _template()
_DEVICES: Final = "".join(
    f"""<controller type='usb' index='{index}' model='piix3-uhci'><alias name='usb{index}'/>
    <address type='pci' domain='0x0000' bus='0x00' slot='0x01' function='0x{index}'/></controller>"""
    for index in range(20)
)
# As long as a guest's description usually is.
_XML: Final = f"""<domain type='kvm' id='@'><name>guest-@</name><memory unit='KiB'>8388608</memory>
<currentMemory unit='KiB'>4194304</currentMemory><vcpu placement='static'>{_VCPUS}</vcpu><devices>
<disk type='file' device='disk'><source file='/guest-@.qcow2'/><target dev='vda' bus='virtio'/>
<iotune><total_iops_sec>1000</total_iops_sec></iotune></disk>
<interface type='bridge'><source bridge='br0'/><target dev='vnet0'/></interface>{_DEVICES}</devices></domain>"""
_calls: Final = itertools.count(1)


class Domain:
    """One running guest, as virDomain tells of it."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._uuid = f"3f0d4a1e-0000-4000-8000-{number:012d}"

    def UUIDString(self) -> str:
        """Return its UUID."""
        return self._uuid

    def name(self) -> str:
        """Return its name."""
        return f"guest-{self._number}"

    def ID(self) -> int:
        """Return its number of this start."""
        return self._number + 1

    def isActive(self) -> int:
        """Return that it runs."""
        return 1

    def state(self, _flags: int = 0) -> list[int]:
        """Return that it runs, and that it was booted."""
        return [1, 1]

    def XMLDesc(self, _flags: int = 0) -> str:
        """Return its description."""
        return _XML.replace("@", str(self._number))

    def schedulerParametersFlags(self, _flags: int = 0) -> dict[str, int]:
        """Return what the scheduler is told."""
        return {"cpu_shares": 1024, "vcpu_period": 100000, "vcpu_quota": -1}

    def metadata(self, _kind: int, uri: str, _flags: int = 0) -> str:
        """Return its tags."""
        return f"<tags xmlns='{uri}' tier='batch'/>"

    def jobInfo(self) -> list[int]:
        """Return that it has no job."""
        return [0] * 12

    def jobStats(self) -> dict[str, int]:
        """Return that it has no job."""
        return {"type": 0}

    def startDirtyRateCalc(self, _seconds: int, _flags: int) -> None:
        """Take note and do nothing."""


class Connection(_real.virConnect):  # type: ignore[misc,name-defined] # the binding has no annotations
    """virConnect of the test driver, whose guests are as many as the environment says."""

    def getType(self) -> str:
        """Return the name of the driver that the guests are told of by."""
        return "QEMU"

    def getAllDomainStats(self, _stats: int = 0, _flags: int = 0) -> list[tuple[Domain, dict[str, Any]]]:
        """Return every guest with what a running QEMU guest tells."""
        number = next(_calls)
        return [(guest, stats_of(number * 10**9 + index)) for index, guest in enumerate(_guests())]

    def listAllDomains(self, _flags: int = 0) -> list[Domain]:
        """Return every guest."""
        return _guests()

    def lookupByUUIDString(self, uuid: str) -> Domain:
        """Return one guest."""
        return Domain(int(uuid[-12:]))


def _guests() -> list[Domain]:
    return [Domain(number) for number in range(int(os.environ["STAND_IN_GUESTS"]))]


def stats_of(counter: int) -> dict[str, Any]:
    """Return new statistics whose counters stand at `counter`."""
    found: dict[str, Any] = json.loads(_TEXT.replace("@", str(counter)))
    return found


def open(_name: str | None = None) -> Connection:  # noqa: A001 - libvirt's name
    """Return a connection of the library's to its test driver, with the guests of the stand-in."""
    connection = _real.open("test:///default")
    connection.__class__ = Connection
    return connection  # type: ignore[no-any-return] # the binding has no annotations
