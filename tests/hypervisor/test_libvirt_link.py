"""Connections to libvirt under faults: hanging calls, lost connections, a libvirtd that is not there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import structlog.testing

from tests.hypervisor.fake_libvirt import FakeLibvirt, FakeLibvirtError, Hang, fail
from tests.services import until
from virtpilot.clock import VirtualClock, seconds
from virtpilot.errors import GuestNotFound, HypervisorError, HypervisorTimeout, HypervisorUnavailable
from virtpilot.libvirt_link import MAX_HANGING, Lane, LibvirtLink

PATIENCE_S = 0.05


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(seconds(1_800_000_000))


@pytest.fixture
def link(libvirt: FakeLibvirt, clock: VirtualClock) -> Iterator[LibvirtLink]:
    made = LibvirtLink("fake:///system", binding=libvirt, clock=clock, deadline_s=5.0)
    yield made
    made.close()


def info(connection: Any) -> Any:
    return connection.getInfo()[1]


def test_calls_one_after_the_other_share_one_connection(link: LibvirtLink, libvirt: FakeLibvirt) -> None:
    assert [link.call(Lane.DETAILS, info) for _ in range(5)] == [4096] * 5
    assert libvirt.calls["open"] == 1


def test_a_call_that_hangs_is_left_behind_and_the_next_has_a_connection_of_its_own(
    link: LibvirtLink, libvirt: FakeLibvirt
) -> None:
    hang = libvirt.on["getInfo"] = Hang(times=1)
    with pytest.raises(HypervisorTimeout, match="no answer from libvirt within"):
        link.call(Lane.DETAILS, info, patience_s=PATIENCE_S)
    assert link.call(Lane.DETAILS, info) == 4096
    assert libvirt.calls["open"] == 2
    first = libvirt.connections[0]
    assert not first.closed  # closing it would hang as well
    hang.let_go()
    assert until(lambda: first.closed, 20)


def test_a_lane_takes_so_many_hanging_calls_and_starves_no_other(link: LibvirtLink, libvirt: FakeLibvirt) -> None:
    hang = libvirt.on["getInfo"] = Hang()
    for _ in range(MAX_HANGING[Lane.DETAILS]):
        with pytest.raises(HypervisorTimeout, match="no answer"):
            link.call(Lane.DETAILS, info, patience_s=PATIENCE_S)
    assert link.crowded(Lane.DETAILS)
    begun = libvirt.calls["getInfo"]
    with pytest.raises(HypervisorTimeout, match="hang already"):
        link.call(Lane.DETAILS, info)
    assert libvirt.calls["getInfo"] == begun
    assert link.call(Lane.COMMAND, lambda connection: connection.getType()) == "QEMU"
    hang.let_go()
    assert until(lambda: not link.crowded(Lane.DETAILS), 20)
    assert link.call(Lane.DETAILS, info) == 4096


def test_a_connection_lost_under_a_call_is_replaced_and_the_call_made_again(
    link: LibvirtLink, libvirt: FakeLibvirt
) -> None:
    link.call(Lane.DETAILS, info)

    def cut() -> None:
        del libvirt.on["getInfo"]
        libvirt.cut()
        raise FakeLibvirtError("Cannot recv data: Connection reset by peer", libvirt.VIR_ERR_SYSTEM_ERROR)

    libvirt.on["getInfo"] = cut
    assert link.call(Lane.DETAILS, info) == 4096
    assert libvirt.calls["open"] == 2
    assert link.losses == 1


def test_a_connection_that_broke_while_idle_is_not_used(link: LibvirtLink, libvirt: FakeLibvirt) -> None:
    link.call(Lane.DETAILS, info)
    libvirt.cut()
    assert link.call(Lane.DETAILS, info) == 4096
    assert libvirt.connections[0].closed
    assert (libvirt.calls["getInfo"], link.losses) == (2, 1)


def test_an_absent_libvirtd_is_tried_ever_more_seldom_and_told_of_once(
    link: LibvirtLink, libvirt: FakeLibvirt, clock: VirtualClock
) -> None:
    libvirt.on["open"] = fail("Failed to connect socket", libvirt.VIR_ERR_SYSTEM_ERROR)
    tried_s: list[float] = []
    with structlog.testing.capture_logs() as logs:
        for tenth in range(600):
            before = libvirt.calls["open"]
            with pytest.raises(HypervisorUnavailable):
                link.call(Lane.DETAILS, info)
            if libvirt.calls["open"] > before:
                tried_s.append(tenth / 10)
            clock.advance(0.1)
        del libvirt.on["open"]
        clock.advance(15)
        assert link.call(Lane.DETAILS, info) == 4096
        link.call(Lane.DETAILS, info)
    waits = [round(later - earlier, 1) for earlier, later in pairwise(tried_s)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    assert [entry["event"] for entry in logs] == ["libvirt cannot be reached", "libvirt is back"]


def test_errors_are_mapped_and_a_sound_connection_stays(link: LibvirtLink, libvirt: FakeLibvirt) -> None:
    with pytest.raises(GuestNotFound):
        link.call(Lane.COMMAND, lambda connection: connection.lookupByUUIDString("none"))
    # The code of a lost connection over a sound one: a migration's target that is not there.
    libvirt.on["getInfo"] = fail("unable to connect to server", libvirt.VIR_ERR_SYSTEM_ERROR)
    with pytest.raises(HypervisorError) as raised:
        link.call(Lane.DETAILS, info)
    assert type(raised.value) is HypervisorError
    with pytest.raises(GuestNotFound):
        link.call(Lane.DETAILS, info, {libvirt.VIR_ERR_SYSTEM_ERROR: GuestNotFound})
    assert (libvirt.calls["open"], link.losses) == (1, 0)


def test_a_fault_of_our_own_comes_through_as_it_is(link: LibvirtLink) -> None:
    with pytest.raises(ZeroDivisionError):
        link.call(Lane.DETAILS, lambda _connection: 1 // 0)


def test_closing_lets_go_of_what_is_idle_and_does_not_wait_for_what_hangs(
    link: LibvirtLink, libvirt: FakeLibvirt
) -> None:
    hang = libvirt.on["getInfo"] = Hang(times=1)
    with pytest.raises(HypervisorTimeout):
        link.call(Lane.DETAILS, info, patience_s=PATIENCE_S)
    link.call(Lane.DETAILS, info)
    link.close()
    hung, idle = libvirt.connections
    assert (hung.closed, idle.closed) == (False, True)
    with pytest.raises(HypervisorUnavailable, match="closed"):
        link.call(Lane.DETAILS, info)
    hang.let_go()
    assert until(lambda: hung.closed, 20)


def test_many_threads_at_once_never_share_a_connection(link: LibvirtLink) -> None:
    using: set[int] = set()
    shared: list[int] = []
    lock = threading.Lock()

    def work(connection: Any) -> None:
        with lock:
            if id(connection) in using:
                shared.append(id(connection))
            using.add(id(connection))
        connection.getInfo()
        with lock:
            using.discard(id(connection))

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(link.call, Lane.COMMAND, work) for _ in range(200)]:
            done.result(10)
    assert shared == []
