"""The guests' image: Debian's cloud kernel with an initramfs of BusyBox, the virtio drivers and our init.

Built once per kernel, BusyBox and init script into a cache folder; a few megabytes, up in seconds under emulation.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.lab.command import output
from deploy.lab.errors import LabMissing

DEFAULT_CACHE: Final = Path("/var/cache/virtpilot-lab")
_INIT: Final = Path(__file__).with_name("guest-init.sh")
_DRIVERS: Final = (
    "virtio_pci",
    "virtio_balloon",
    "virtio_console",
    "virtio_blk",
    "virtio_net",
    "virtio_mem",
    "button",
    "evdev",
)
_DISK_BYTES: Final = 8 * 1024 * 1024
_KERNEL: Final = re.compile(r"vmlinuz-(.*-cloud-amd64)")


@dataclass(frozen=True)
class Image:
    """What a guest boots: kernel, initramfs, and a small read-only disk that all guests share."""

    kernel: Path
    initramfs: Path
    disk: Path


def newest_kernel(boot: Path = Path("/boot")) -> tuple[str, Path]:
    """Return version and path of the newest cloud kernel; raises LabMissing."""
    found = [(match[1], path) for path in boot.glob("vmlinuz-*") if (match := _KERNEL.fullmatch(path.name))]
    if not found:
        raise LabMissing(f"no {boot}/vmlinuz-*-cloud-amd64: install linux-image-cloud-amd64")
    return max(found, key=lambda item: [int(number) for number in re.findall(r"\d+", item[0])])


def build(cache: Path = DEFAULT_CACHE, *, agent: bool = False) -> Image:
    """Return the image, made when the cache has none for this kernel, BusyBox and init script.

    With `agent` QEMU's guest agent is in it, and the disk has a file system for it to tell of.
    """
    version, kernel = newest_kernel()
    busybox = _busybox()
    programs = [busybox, *(_agent() if agent else [])]
    sources = [_INIT, Path(__file__), *programs]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    folder = cache / f"{version}-{digest}"
    image = Image(kernel, folder / "initramfs.gz", folder / "disk.raw")
    if not image.disk.exists():  # made last
        folder.mkdir(parents=True, exist_ok=True)
        _replace(image.initramfs, _initramfs(version, programs))
        _replace(image.disk, _file_system() if agent else bytes(range(256)) * (_DISK_BYTES // 256))
    return image


def _agent() -> list[Path]:
    """Return QEMU's guest agent with the libraries that it needs; raises LabMissing."""
    path = shutil.which("qemu-ga", path="/usr/sbin:/usr/bin")
    if not path:
        raise LabMissing("qemu-ga is not installed: install qemu-guest-agent")
    libraries = re.findall(r"(?:=> |^\s*)(/\S+)", output(["ldd", path]), re.MULTILINE)
    return [Path(path), *map(Path, libraries)]


def _file_system() -> bytes:
    with tempfile.NamedTemporaryFile(prefix="virtpilot-lab-") as disk:
        disk.truncate(_DISK_BYTES)
        output(["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", disk.name])
        return Path(disk.name).read_bytes()


def _busybox() -> Path:
    path = shutil.which("busybox")
    if not path:
        raise LabMissing("busybox is not installed: install busybox-static")
    content = Path(path).read_bytes()
    if b"ld-linux" in content[:4096]:
        raise LabMissing(f"{path} needs shared libraries: install busybox-static")
    return Path(path)


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(f".{os.getpid()}.new")  # another lab may make the same at the same time
    fresh.write_bytes(content)
    fresh.replace(path)


def module_paths(version: str, drivers: Sequence[str] = _DRIVERS) -> list[Path]:
    """Return the kernel modules that the drivers need, in the order to insert them."""
    found: dict[Path, None] = {}
    for driver in drivers:
        for line in output(["modprobe", "-S", version, "--show-depends", driver]).splitlines():
            verb, _, path = line.strip().partition(" ")
            if verb == "insmod":
                found[Path(path.split()[0])] = None
    return list(found)


def _unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    return {".xz": lzma.decompress, ".gz": gzip.decompress}.get(path.suffix, bytes)(content)


def _initramfs(version: str, programs: Sequence[Path]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="virtpilot-lab-") as folder:
        root = Path(folder)
        for name in ("bin", "modules", "dev", "proc", "sys", "run"):
            (root / name).mkdir()
        for program in programs:
            place = root / "bin" / program.name if program.parent.name.endswith("bin") else root / str(program)[1:]
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(program, place)
        (root / "bin" / "sh").symlink_to("busybox")
        shutil.copy(_INIT, root / "init")
        (root / "init").chmod(0o755)
        order = []
        for path in module_paths(version):
            name = path.name.partition(".ko")[0] + ".ko"
            (root / "modules" / name).write_bytes(_unpacked(path))
            order.append(name)
        (root / "modules" / "order").write_text("".join(f"{name}\n" for name in order))
        archive = root.parent / f"{root.name}.cpio"
        try:
            names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
            _pack(root, names, archive)
            return gzip.compress(archive.read_bytes(), mtime=0)
        finally:
            archive.unlink(missing_ok=True)


def _pack(root: Path, names: Sequence[str], archive: Path) -> None:
    argv = ["cpio", "--quiet", "--create", "--format=newc", f"--directory={root}", f"--file={archive}"]
    output([*argv, "--owner=0:0"], stdin="".join(f"{name}\n" for name in names))
