"""What is configured for a guest, read from XML that a real libvirtd told and from XML that nobody should tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot.fields import FIELDS
from virtpilot.hypervisor import GuestDetails
from virtpilot.libvirt_limits import read_configured

TUNED: Final = (Path(__file__).parent / "xml/tuned.xml").read_text()
PLAIN: Final = (Path(__file__).parent / "xml/plain.xml").read_text()
NO_QUOTA: Final = {
    "cpu_shares": 1024,
    "vcpu_period": 100000,
    "vcpu_quota": -1,
    "emulator_period": 100000,
    "emulator_quota": -1,
    "global_period": 100000,
    "global_quota": -1,
    "iothread_period": 100000,
    "iothread_quota": -1,
}
QUOTAS: Final = NO_QUOTA | {
    "cpu_shares": 2000,
    "vcpu_quota": 50000,
    "emulator_quota": 30000,
    "global_quota": 90000,
    "iothread_quota": 20000,
}


DETAILS: Final = GuestDetails(
    guest={
        "cpu_shares_count": 2000,
        "cpu_limit_ratio": 0.5,
        "cpu_guest_limit_count": 0.9,
        "cpu_emulator_limit_count": 0.3,
        "cpu_iothread_limit_count": 0.2,
        "memory_balloon_target_bytes": 102400 * 1024,
        "memory_hard_limit_bytes": 1000000 * 1024,
        "memory_soft_limit_bytes": 200000 * 1024,
        "memory_swap_hard_limit_bytes": 1200000 * 1024,
        "blkio_weight_count": 500,
    },
    disks={
        "vda": {
            "total_limit_bytes_per_second": 1000000,
            "total_burst_limit_bytes_per_second": 2000000,
            "read_limit_requests_per_second": 100,
            "read_burst_limit_requests_per_second": 200,
        }
    },
    nics={
        "vnet0": {
            "receive_limit_bytes_per_second": 1_000_000,
            "receive_peak_limit_bytes_per_second": 2_000_000,
            "receive_burst_limit_bytes": 3000 * 1024,
            "transmit_limit_bytes_per_second": 500_000,
        }
    },
)
KNOBS: Final = {
    "cpu_shares": 2000,
    "vcpu_quota": 50000,
    "vcpu_period": 100000,
    "global_quota": 90000,
    "global_period": 100000,
    "emulator_quota": 30000,
    "emulator_period": 100000,
    "iothread_quota": 20000,
    "iothread_period": 100000,
    "memory_balloon": 102400 * 1024,
    "memory_hard_limit": 1000000 * 1024,
    "memory_soft_limit": 200000 * 1024,
    "memory_swap_hard_limit": 1200000 * 1024,
    "blkio_weight": 500,
    "vda.total_bytes_sec": 1000000,
    "vda.total_bytes_sec_max": 2000000,
    "vda.read_iops_sec": 100,
    "vda.read_iops_sec_max": 200,
    "nic0.inbound_average": 1_000_000,
    "nic0.inbound_peak": 2_000_000,
    "nic0.inbound_burst": 3000 * 1024,
    "nic0.outbound_average": 500_000,
}


def test_all_that_was_set_by_hand_is_found_in_base_units() -> None:
    assert read_configured(TUNED, QUOTAS) == (KNOBS, DETAILS, True)


def test_what_has_no_limit_is_absent() -> None:
    assert read_configured(PLAIN, NO_QUOTA) == (
        {"cpu_shares": 1024, "memory_balloon": 131072 * 1024},
        GuestDetails({"cpu_shares_count": 1024, "memory_balloon_target_bytes": 131072 * 1024}),
        False,
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<domain><memtune><hard_limit unit='KiB'>9007199254740991</hard_limit></memtune></domain>", {}),
        ("<domain><memtune><hard_limit unit='parsec'>5</hard_limit></memtune></domain>", {}),
        ("<domain><memtune><hard_limit>-5</hard_limit></memtune></domain>", {}),
        ("<domain><memtune><hard_limit>99999999999999999999999</hard_limit></memtune></domain>", {}),
        ("<domain><memtune><hard_limit unit='GiB'> 2 </hard_limit></memtune></domain>", {"hard": 2 * 2**30}),
        ("<!DOCTYPE d [<!ENTITY n '5'>]><domain><memtune><hard_limit>&n;</hard_limit></memtune></domain>", {}),
        ("<domain><memtune><hard_limit>5</hard_limit></memtune>", {}),
        (f"<domain><memtune><hard_limit>5</hard_limit></memtune>{' ' * 4_200_000}</domain>", {}),
        ("", {}),
    ],
    ids=["unlimited", "unit", "negative", "too-large", "unit-known", "entity", "cut", "huge", "none"],
)
def test_xml_that_is_odd_gives_what_it_can(text: str, found: dict[str, int]) -> None:
    expected = {"memory_hard_limit_bytes": found["hard"]} if found else {}
    assert read_configured(text, {}).details.guest == expected


@settings(derandomize=True, deadline=None, max_examples=examples(150))
@given(
    st.text(max_size=20),
    st.one_of(st.text(max_size=12), st.integers().map(str)),
    st.dictionaries(st.sampled_from(sorted(NO_QUOTA)), st.one_of(st.integers(), st.floats(), st.text(max_size=4))),
)
def test_whatever_is_told_gives_declared_fields_with_positive_numbers(
    name: str, value: str, schedule: dict[str, Any]
) -> None:
    text = TUNED.replace("102400", value).replace("1000000", value).replace("'1000'", f"'{value}'")
    for one in (text, text.replace("vda", name).replace("vnet0", name), value):
        configured = read_configured(one, schedule)
        assert all(isinstance(knob, int) and 0 < knob < 2**63 for knob in configured.knobs.values())
        for measurement, devices in (
            ("vm", {"": configured.details.guest}),
            ("vm_disk", configured.details.disks),
            ("vm_net", configured.details.nics),
        ):
            for numbers in devices.values():
                assert all((measurement, field) in FIELDS and number > 0 for field, number in numbers.items())
