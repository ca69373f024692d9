"""Who is told, and targets that are dead, slow, busy, or refuse: none of them blocks anybody."""

from __future__ import annotations

import http.client
import threading
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from tests.alerts.listening import listening, signal, tarpit
from tests.services import free_port, until
from virtpilot.clock import SystemClock, VirtualClock, seconds
from virtpilot.errors import ConfigError
from virtpilot.model import Signal, SignalState
from virtpilot.pipeline.alerts import AlertOptions, Alerts, AlertTarget
from virtpilot.pipeline.courier import Courier, Parcel, post_json
from virtpilot.pipeline.settings import loads

FIRING, CLEARING, PENDING, INACTIVE = (
    SignalState.FIRING,
    SignalState.CLEARING,
    SignalState.PENDING,
    SignalState.INACTIVE,
)
_CLOCK = SystemClock()


def _alerts(queue: int = 100, **urls: str) -> Alerts:
    kinds = {"am": "alertmanager"}
    targets = [
        AlertTarget(name=name, kind=kinds.get(name, "webhook"), url=url, timeout_s=0.5)  # type: ignore[arg-type]
        for name, url in urls.items()
    ]
    return Alerts(AlertOptions(targets=targets, queue=queue), _CLOCK, "c")


def test_a_webhook_gets_the_signal_itself_once_per_firing_and_clearing() -> None:
    walk = [
        signal(PENDING, INACTIVE, at_s=1),
        signal(FIRING, PENDING, at_s=2),
        signal(CLEARING, FIRING, at_s=3),
        signal(FIRING, CLEARING, at_s=4),
        signal(CLEARING, FIRING, at_s=5),
        signal(INACTIVE, CLEARING, at_s=6),
        signal(PENDING, INACTIVE, at_s=7),
        signal(INACTIVE, PENDING, at_s=8),
    ]
    with listening() as server:
        alerts = _alerts(hook=f"{server.url}/a/b?c=d")
        for step in walk:
            alerts.signal(step)
            alerts.tick(step.at_ns)
        alerts.close(5.0)
        assert [msgspec.convert(body, Signal) for _, body in server.bodies] == [walk[1], walk[5]]
        assert server.paths == ["/a/b?c=d"] * 2


def test_a_rule_chooses_its_targets_by_name_and_none_means_all() -> None:
    with listening() as one, listening() as two:
        alerts = _alerts(one=one.url, two=two.url)
        alerts.signal(signal(FIRING, rule="a", notify=["two"]))
        alerts.signal(signal(FIRING, rule="b"))
        alerts.signal(signal(FIRING, rule="c", notify=["nobody"]))
        alerts.close(5.0)
        assert [body["rule"] for _, body in one.bodies] == ["b"]
        assert [body["rule"] for _, body in two.bodies] == ["a", "b"]


def test_dead_and_silent_targets_hold_up_neither_the_caller_nor_the_others() -> None:
    started_ns = _CLOCK.monotonic_ns()
    with listening() as alive, tarpit() as silent:
        dead = f"http://127.0.0.1:{free_port()}"
        alerts = _alerts(dead=dead, am=silent, silent=silent, alive=alive.url)
        for number in range(50):
            alerts.signal(signal(FIRING, rule=f"r{number}"))
        assert _CLOCK.monotonic_ns() - started_ns < seconds(2)
        assert until(lambda: len(alive.bodies) == 50)
        assert until(lambda: alerts.failures()["dead"] >= 1 and alerts.failures()["silent"] >= 1)
        assert (alerts.sent()["dead"], alerts.sent()["silent"]) == (0, 0)
        closing_ns = _CLOCK.monotonic_ns()
        alerts.close(1.0)
        assert _CLOCK.monotonic_ns() - closing_ns < seconds(2)


@pytest.mark.parametrize("drip", [b"", b"H", b"HTTP/1.1 200 OK\r\nX: y\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_an_attempt_ends_at_its_deadline_also_when_bytes_keep_dripping(drip: bytes) -> None:
    with tarpit(drip) as url:
        started_ns = _CLOCK.monotonic_ns()
        with pytest.raises((OSError, http.client.HTTPException)):
            post_json(url, b"{}", 0.4, _CLOCK)
        assert _CLOCK.monotonic_ns() - started_ns < seconds(2)


def test_a_target_that_fails_for_a_while_gets_everything_in_order_afterwards() -> None:
    with listening(500, 429, 503, 204) as server:
        alerts = _alerts(hook=server.url)
        for number in range(3):
            alerts.signal(signal(FIRING, rule=f"r{number}"))
        assert until(lambda: alerts.sent()["hook"] == 3, within_s=20)
        taken = [body["rule"] for status, body in server.bodies if status == 204]
        assert (taken, alerts.failures()["hook"], alerts.dropped()["hook"]) == (["r0", "r1", "r2"], 3, 0)
        alerts.close(1.0)


def test_what_a_target_refuses_is_dropped_and_the_next_is_sent() -> None:
    with listening(400, 200) as server:
        alerts = _alerts(hook=server.url)
        alerts.signal(signal(FIRING, rule="bad"))
        alerts.signal(signal(FIRING, rule="good"))
        alerts.close(5.0)
        assert [(status, body["rule"]) for status, body in server.bodies] == [(400, "bad"), (200, "good")]
        assert alerts.dropped() == {"hook": 1}


def test_a_redirect_is_not_followed() -> None:
    with listening() as elsewhere, listening(307, headers={"Location": elsewhere.url}) as server:
        alerts = _alerts(hook=server.url)
        alerts.signal(signal(FIRING))
        alerts.close(5.0)
        assert (len(server.bodies), elsewhere.bodies, alerts.dropped()) == (1, [], {"hook": 1})


def test_a_full_queue_drops_the_oldest_and_counts_them() -> None:
    with tarpit() as silent, listening() as server:
        alerts = _alerts(queue=5, hook=silent)
        for number in range(20):
            alerts.signal(signal(FIRING, rule=f"r{number:02}"))
        # One may be on its way just now; with it come back, the five newest wait.
        assert until(lambda: alerts.dropped()["hook"] == 15)
        assert alerts.waiting()["hook"] in (4, 5)
        alerts.close(0.1)
        courier = Courier("c", server.url, timeout_s=5, limit=1, clock=_CLOCK)
        courier.finish()
        assert courier.join(20)


def test_repeated_alerts_of_a_dead_alertmanager_do_not_pile_up() -> None:
    alerts = _alerts(am=f"http://127.0.0.1:{free_port()}")
    alerts.signal(signal(FIRING))
    for minute in range(1000):
        alerts.tick(seconds(60.0 * minute))
    assert alerts.waiting()["am"] <= 1
    assert alerts.dropped()["am"] == 0
    alerts.close(1.0)


def test_a_clock_set_back_does_not_stop_the_repetitions() -> None:
    with listening() as server:
        alerts = _alerts(am=server.url)
        alerts.signal(signal(FIRING))
        alerts.tick(seconds(1_000_000))
        assert until(lambda: alerts.waiting()["am"] == 0)
        before = len(server.bodies)
        alerts.tick(seconds(500_000))
        assert until(lambda: len(server.bodies) > before)
        alerts.close(1.0)


def test_a_newer_word_replaces_one_that_comes_back_undelivered() -> None:
    with listening(503, 200) as server:
        courier = Courier("c", server.url, timeout_s=5, limit=10, clock=_CLOCK, as_list=True)
        courier.put(Parcel("a", b'"old"'))
        assert until(lambda: courier.failures == 1)
        courier.put(Parcel("b", b'"b"'))
        courier.put(Parcel("a", b'"new"'))
        courier.finish()
        assert courier.join(20)
        assert server.bodies == [(503, ["old"]), (200, ["new", "b"])]


def test_closing_sends_what_waits_and_leaves_no_thread() -> None:
    with listening() as server:
        alerts = _alerts(hook=server.url)
        for number in range(20):
            alerts.signal(signal(FIRING, rule=f"r{number}"))
        alerts.close(10.0)
        assert len(server.bodies) == 20
        assert not [thread for thread in threading.enumerate() if thread.name == "courier-hook"]


def test_no_target_and_a_virtual_clock_is_the_demo() -> None:
    alerts = Alerts(AlertOptions(), VirtualClock(), "demo")
    alerts.signal(signal(FIRING))
    alerts.tick(1)
    assert [one.rule for one in alerts.firing()] == ["vm-cpu-starved"]
    alerts.close(1.0)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://x/", "matching regex"),
        ("http:///x", "names no host"),
        ("http://user:hunter2@x/", "secrets belong in a file"),
        ("http://x:99999/", "Port out of range"),
        ("http://x/a b", "escaped"),
        ("http://x/é", "escaped"),
    ],
)
def test_an_address_that_cannot_be_is_refused_with_its_place(url: str, why: str) -> None:
    text = f'[[targets]]\nname = "x"\nkind = "webhook"\nurl = "{url}"\n'
    with pytest.raises(ConfigError, match=why) as caught:
        loads(text, "f.toml", AlertOptions)
    (problem,) = caught.value.problems
    assert problem.line in (1, 4)
    assert "hunter2" not in str(problem)


@pytest.mark.parametrize("kind", ["webhook", "alertmanager"])
def test_a_targets_token_comes_from_a_file(tmp_path: Path, kind: Literal["webhook", "alertmanager"]) -> None:
    file = tmp_path / "token"
    file.write_text("t0ken.of-me_\n")
    file.chmod(0o600)
    with listening() as server, listening() as other:
        targets = [AlertTarget("known", kind, server.url, token_file=str(file)), AlertTarget("open", kind, other.url)]
        alerts = Alerts(AlertOptions(targets=targets), _CLOCK, "c")
        alerts.signal(signal(FIRING))
        alerts.close(5.0)
    assert server.tokens == ["Bearer t0ken.of-me_"]
    assert other.tokens == [None]


@pytest.mark.parametrize(
    ("content", "mode"), [("hunter2 hunter2", 0o600), ("hunter2\r\nX: y", 0o600), ("hunter2", 0o644)]
)
def test_a_token_that_cannot_be_one_is_refused_unseen(tmp_path: Path, content: str, mode: int) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    file.chmod(mode)
    target = AlertTarget("x", "webhook", "http://127.0.0.1:9", token_file=str(file))
    with pytest.raises(ConfigError, match="token_file") as caught:
        Alerts(AlertOptions(targets=[target]), _CLOCK, "c")
    assert "hunter2" not in str(caught.value)


def test_two_targets_of_one_name_are_refused(tmp_path: Path) -> None:
    target = '[[targets]]\nname = "x"\nkind = "webhook"\nurl = "http://x"\n'
    with pytest.raises(ConfigError, match="two targets have the same name: x"):
        loads(target * 2, "f.toml", AlertOptions)


def test_a_host_name_that_dns_cannot_hold_is_a_failed_attempt_like_others() -> None:
    alerts = _alerts(hook=f"http://{'x' * 70}.example/")
    alerts.signal(signal(FIRING))
    assert until(lambda: alerts.failures()["hook"] >= 1)
    alerts.close(1.0)
