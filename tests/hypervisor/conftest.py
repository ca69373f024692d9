"""What the tests of libvirt's reader begin with: a double of the binding without faults, and time that stands still."""

from __future__ import annotations

import pytest

from tests.hypervisor.fake_libvirt import FakeLibvirt
from virtpilot.clock import VirtualClock


@pytest.fixture
def libvirt() -> FakeLibvirt:
    return FakeLibvirt()


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()
