"""What guests wake from: which of them are of a kind, and the file that libvirt restores one from."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.lab import asleep
from deploy.lab.asleep import header, sleeper_of, stream_at
from deploy.lab.errors import LabError
from deploy.lab.guest import GuestPlan
from deploy.lab.image import Image

IMAGE = Image(Path("/boot/vmlinuz"), Path("/cache/initramfs.gz"), Path("/cache/disk.raw"))
PLAN = GuestPlan("web-1", "host-1")


@pytest.fixture(autouse=True)
def versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asleep, "_versions", lambda: ("QEMU emulator version 7.2.9", "9.0.0"))


def stream(plan: GuestPlan, image: Image = IMAGE) -> Path:
    found = sleeper_of(plan, image)
    assert found is not None
    return found.stream


@pytest.mark.parametrize(
    "other",
    [{"name": "web-2"}, {"host": "host-2"}, {"load": 70}, {"tags": {"tier": "web"}}, {"shares": 2048}],
    ids=str,
)
def test_guests_that_differ_in_what_is_not_in_their_memory_wake_from_the_same(other: dict[str, Any]) -> None:
    assert stream(replace(PLAN, **other)) == stream(PLAN)
    assert stream(PLAN).parent == IMAGE.initramfs.parent


@pytest.mark.parametrize(
    "other", [{"memory_mib": 160}, {"balloon_mib": 96}, {"vcpus": 2}, {"vcpus_max": 4}, {"agent": True}], ids=str
)
def test_guests_of_another_size_or_with_an_agent_do_not(other: dict[str, Any]) -> None:
    assert stream(replace(PLAN, **other)) != stream(PLAN)


def test_another_image_is_another_memory() -> None:
    for other in ({"kernel": Path("/boot/other")}, {"initramfs": Path("/cache/b/initramfs.gz")}):
        assert stream(PLAN, replace(IMAGE, **other)) != stream(PLAN)


def test_another_qemu_or_libvirt_is_another_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    before = stream(PLAN)
    monkeypatch.setattr(asleep, "_versions", lambda: ("QEMU emulator version 7.2.9", "9.0.1"))
    assert stream(PLAN) != before


def test_a_guest_on_the_cpu_of_this_machine_boots() -> None:
    assert sleeper_of(replace(PLAN, type="kvm"), IMAGE) is None


@pytest.mark.parametrize("definition", ["<domain/>", "<domain>\n  <name>é</name>\n</domain>\n"])
def test_the_stream_begins_behind_header_and_definition(definition: str) -> None:
    saved = io.BytesIO(header(definition) + b"QEVM")
    saved.seek(stream_at(saved))
    assert saved.read() == b"QEVM"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"LibvirtQemudSave",
        b"LibvirtQemudPart" + header("<domain/>")[16:],  # libvirt's mark of one that is not whole
        header("<domain/>").replace(b"\x02", b"\x03", 1),
        header("<domain/>")[:28] + b"\x01" + header("<domain/>")[29:],  # packed
    ],
    ids=["empty", "short", "partial", "another version", "packed"],
)
def test_what_is_no_saved_guest_is_said(raw: bytes) -> None:
    with pytest.raises(LabError, match="no saved guest"):
        stream_at(io.BytesIO(raw))
