"""Which guest the controller runs on: by QEMU's UUID, the machine id made from it, or a container's variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtpilot.pipeline.own_machine import machine_uuids

UUID = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
OTHER = "11111111-2222-4333-8444-555555555555"


def written(root: Path, files: dict[str, bytes]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text)
    return root


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, set()),
        ({"sys/class/dmi/id/product_uuid": UUID.upper().encode() + b"\n"}, {UUID}),
        ({"etc/machine-id": UUID.replace("-", "").encode() + b"\n"}, {UUID}),
        ({"etc/machine-id": b"uninitialized\n"}, set()),
        ({"proc/1/environ": f"PATH=/bin\0LIBVIRT_LXC_UUID={UUID}\0TERM=linux".encode()}, {UUID}),
        ({"proc/1/environ": f"container_uuid={OTHER}".encode(), "etc/machine-id": UUID.encode()}, {UUID, OTHER}),
        ({"sys/class/dmi/id/product_uuid": b"\xff\xfe" * 40, "etc/machine-id": b""}, set()),
        ({"sys/class/dmi/id/product_uuid": b"Not Settable"}, set()),
    ],
)
def test_what_this_machine_may_be(files: dict[str, bytes], found: set[str], tmp_path: Path) -> None:
    assert machine_uuids(written(tmp_path, files)) == found
