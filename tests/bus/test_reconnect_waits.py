"""The waits between connections: short after a good one, growing in a quarrel over a name."""

from __future__ import annotations

from virtpilot.clock import VirtualClock
from virtpilot.pipeline.bus.mqtt_options import MqttOptions
from virtpilot.pipeline.bus.reconnect import Reconnect

OPTIONS = MqttOptions(reconnect_min_s=0.5, reconnect_max_s=8.0, takeover_wait_s=60.0)


def life(reconnect: Reconnect, clock: VirtualClock, for_s: float, *, taken_over: bool = False) -> tuple[bool, float]:
    """Connect, live and be thrown out; return whether that is suspicious, and the wait that follows."""
    reconnect.connected()
    clock.advance(for_s)
    return reconnect.lost(taken_over=taken_over), reconnect.pause_s()


def test_a_connection_that_lasted_is_made_again_at_once_however_long_the_broker_was_away_before() -> None:
    clock = VirtualClock()
    reconnect = Reconnect(OPTIONS, clock)
    for _failure in range(9):
        waited_s = reconnect.pause_s()
    assert waited_s >= 4.0
    for _loss in range(5):
        suspicious, pause_s = life(reconnect, clock, 20.0)
        assert not suspicious
        assert pause_s <= 0.5
    assert reconnect.takeovers == 0


def test_connections_that_end_soon_wait_longer_each_time_and_are_told_from_the_third_on() -> None:
    clock = VirtualClock()
    reconnect = Reconnect(OPTIONS, clock)
    found = [life(reconnect, clock, 8.0) for _time in range(8)]
    assert [suspicious for suspicious, _pause_s in found] == [False, False] + [True] * 6
    assert found[0][1] <= 0.5, "a broker that was restarted once costs nothing"
    assert all(pause_s >= 4.0 for _suspicious, pause_s in found[5:])
    assert reconnect.takeovers == 6
    assert life(reconnect, clock, 16.0)[0] is False, "the quarrel is over"
    assert life(reconnect, clock, 16.0)[1] <= 0.5


def test_a_takeover_that_the_broker_tells_of_is_believed_at_once() -> None:
    clock = VirtualClock()
    reconnect = Reconnect(OPTIONS, clock)
    suspicious, pause_s = life(reconnect, clock, 1000.0, taken_over=True)
    assert suspicious
    assert pause_s > 60.0
    assert reconnect.pause_s() < 10.0, "said once, waited for once"


def test_an_end_without_a_connection_counts_as_nothing() -> None:
    reconnect = Reconnect(OPTIONS, VirtualClock())
    assert [reconnect.lost(taken_over=False) for _time in range(5)] == [False] * 5
