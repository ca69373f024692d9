"""Guests that need not boot: of each kind one does and is put to sleep, and all that follow wake with its memory.

libvirt's file of a saved guest is a header, the guest's definition, and QEMU's stream of memory and devices. The stream
is kept in the image's folder, for every guest of the same kind; header and definition are each guest's own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO, Final

from deploy.lab.command import output
from deploy.lab.errors import LabError
from deploy.lab.guest import Guest, GuestPlan
from deploy.lab.host import Host
from deploy.lab.image import Image

_MAGIC: Final = b"LibvirtQemudSave"
_VERSION: Final = 2
_RAW: Final = 0
# magic, version, bytes of the definition, whether it ran, how the stream is packed, where a cookie is (0: nowhere)
_HEADER: Final = struct.Struct("=16s5I56x")


@dataclass(frozen=True)
class Sleeper:
    """The memory of one kind of guest, in a file that may be still to be made."""

    stream: Path

    @property
    def exists(self) -> bool:
        """Tell whether one has been put to sleep."""
        return self.stream.exists()

    def make(self, guest: Guest, host: Host) -> None:
        """Boot a guest where it is defined, and put it to sleep for all of its kind; raises LabError."""
        guest.boot(host)
        saved = host.folder / f"{guest.name}.saved"
        host.virsh("save", guest.name, str(saved), timeout_s=120)
        fresh = self.stream.with_suffix(f".{os.getpid()}.new")  # another lab may make the same at the same time
        with saved.open("rb") as source, fresh.open("wb") as target:
            source.seek(stream_at(source))
            shutil.copyfileobj(source, target, 2**20)
        fresh.replace(self.stream)
        saved.unlink()

    def wake(self, guest: Guest, host: Host) -> None:
        """Start a guest where it is defined; it runs on from where the other fell asleep; raises LabError."""
        saved = host.folder / f"{guest.name}.saved"
        with self.stream.open("rb") as source, saved.open("wb") as target:
            target.write(header(host.virsh("dumpxml", "--migratable", guest.name)))
            shutil.copyfileobj(source, target, 2**20)
        host.virsh("restore", str(saved), timeout_s=120)
        saved.unlink()
        guest.wake()


def sleeper_of(plan: GuestPlan, image: Image) -> Sleeper | None:
    """Return what a guest may wake from; None where the memory would be of no use on another CPU."""
    if plan.type != "qemu":
        return None
    kind = replace(plan, name="kind", host="", load=0, tags={}, shares=1024)  # what differs and is not in its memory
    digest = hashlib.sha256("\n".join([kind.xml("", image), *_versions()]).encode()).hexdigest()[:12]
    return Sleeper(image.initramfs.with_name(f"asleep-{digest}"))


@cache
def _versions() -> tuple[str, str]:
    return output(["qemu-system-x86_64", "--version"]), output(["virsh", "--version"])


def header(definition: str) -> bytes:
    """Return what a saved guest's file begins with: it ran, its stream is not packed."""
    text = definition.encode() + b"\0"
    return _HEADER.pack(_MAGIC, _VERSION, len(text), 1, _RAW, 0) + text


def stream_at(saved: IO[bytes]) -> int:
    """Return where the stream begins in a saved guest's file; raises LabError for a file of another make."""
    raw = saved.read(_HEADER.size)
    if len(raw) == _HEADER.size:
        magic, version, length, _, packed, _ = _HEADER.unpack(raw)
        if (magic, version, packed) == (_MAGIC, _VERSION, _RAW):
            return _HEADER.size + int(length)
    raise LabError(f"no saved guest as libvirt's format {_VERSION} has it, unpacked: {raw[:32]!r}")
