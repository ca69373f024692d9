"""Which guest this process runs on, if on any: the UUIDs by which libvirt would know it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger(__name__)

_UUID: Final = re.compile(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}")
_DMI: Final = Path("sys/class/dmi/id/product_uuid")
_MACHINE: Final = Path("etc/machine-id")
_INIT: Final = Path("proc/1/environ")
_OF_A_CONTAINER: Final = ("LIBVIRT_LXC_UUID", "container_uuid")


def machine_uuids(root: Path = Path("/")) -> frozenset[str]:
    """Return what may be this machine's UUID as a guest: QEMU's, a container's, or the machine id made from either.

    The first two can be read by root alone; systemd takes a KVM guest's UUID as its machine id at the first start.
    """
    readers: tuple[Callable[[Path], str], ...] = (_dmi, _machine_id, _container)
    found = frozenset(uuid for read in readers if (uuid := _uuid(read(root))))
    log.info("this machine, should it be a guest", uuids=sorted(found))
    return found


def _dmi(root: Path) -> str:
    return _text(root / _DMI)


def _machine_id(root: Path) -> str:
    return _text(root / _MACHINE)


def _container(root: Path) -> str:
    pairs = (line.partition("=") for line in _text(root / _INIT).split("\0"))
    return next((value for name, _, value in pairs if name in _OF_A_CONTAINER), "")


def _text(path: Path) -> str:
    try:
        return path.read_bytes()[:65_536].decode(errors="replace").strip()
    except OSError:
        return ""


def _uuid(text: str) -> str:
    """Return a UUID as libvirt writes it, "" where the text is none."""
    plain = text.lower()
    if not _UUID.fullmatch(plain):
        return ""
    digits = plain.replace("-", "")
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
