"""Signals in a real Alertmanager: they fire, stay, and resolve, also when the guest has moved meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec
import pytest

from tests.alerts.listening import listening, signal
from tests.conftest import MakeAlertmanager
from tests.rules_signals.reference import ruleset
from tests.services import Alertmanager, http, until
from virtpilot.clock import SECOND, SystemClock, seconds
from virtpilot.model import Kind, Sample, Signal, SignalState, Subject
from virtpilot.pipeline.alerts import AlertOptions, Alerts, AlertTarget
from virtpilot.rules.signals.evaluator import Evaluator

pytestmark = [pytest.mark.server, pytest.mark.prompt]

FIRING, CLEARING, INACTIVE = SignalState.FIRING, SignalState.CLEARING, SignalState.INACTIVE
_CLOCK = SystemClock()


@pytest.fixture
def alerts(alertmanager: Alertmanager, request: pytest.FixtureRequest) -> Iterator[Alerts]:
    made = _alerts(alertmanager.url, request.node.name)
    yield made
    made.close(2.0)


def _alerts(url: str, cluster: str, repeat_s: float = 60.0) -> Alerts:
    options = AlertOptions(
        targets=[AlertTarget(name="am", kind="alertmanager", url=f"{url}/")],
        repeat_s=repeat_s,
        link="http://grafana.example/d/guest?var-guest={subject}&rule={rule}",
    )
    return Alerts(options, _CLOCK, cluster)


def _known(server: Alertmanager, cluster: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = msgspec.json.decode(
        http(f"{server.url}/api/v2/alerts", {"filter": f'cluster="{cluster}"'})
    )
    return found


def _now_s() -> float:
    return _CLOCK.now_ns() / SECOND


def _at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_a_firing_signal_is_there_with_labels_annotations_start_and_link(
    alerts: Alerts, alertmanager: Alertmanager, request: pytest.FixtureRequest
) -> None:
    fired_s = _now_s() - 30
    alerts.signal(signal(FIRING, at_s=fired_s))
    assert until(lambda: _known(alertmanager, request.node.name))
    (alert,) = _known(alertmanager, request.node.name)
    assert alert["labels"] == {
        "alertname": "vm-cpu-starved",
        "rule": "vm-cpu-starved",
        "severity": "warning",
        "cluster": request.node.name,
        "kind": "vm",
        "host": "kvm1",
        "vm": "6d1f8b3c-0000-4000-8000-000000000001",
        "name": "web-1",
    }
    assert alert["annotations"]["summary"] == "A guest waits for a physical CPU."
    assert alert["annotations"]["inputs"] == "cpu_steal_ratio=0.31, host.cpu_usage_ratio=0.97"
    assert _at(alert["startsAt"]) == pytest.approx(fired_s, abs=0.002)
    assert _at(alert["endsAt"]) == pytest.approx(_now_s() + 240, abs=20)
    assert alert["generatorURL"].endswith("var-guest=6d1f8b3c-0000-4000-8000-000000000001&rule=vm-cpu-starved")


RULES = """
virtpilot: 1
rules:
  - name: disk-slow
    about: A disk takes long.
    on: vm
    when: any(disks where read_latency_seconds > 50ms) and cpu_usage_ratio > 10%
    severity: critical
    annotations:
      summary: "{{ name }} on {{ host }} ({{ tags.tier }}): {{ disks }} takes long at {{ cpu_usage_ratio }} CPU"
      runbook: "https://runbooks.example/{{ rule }}?severity={{ severity }}&vm={{ id }}"
      quoted: "<b>\\"{{ tags.note }}\\"</b> {{ tags.absent }}"
"""


def test_a_rules_annotations_are_there_with_the_values_that_it_read(
    alerts: Alerts, alertmanager: Alertmanager, request: pytest.FixtureRequest
) -> None:
    evaluator, now_ns = Evaluator(ruleset(RULES)), _CLOCK.now_ns()
    tags = {"cluster": "c", "host": "kvm1", "vm": "g-1", "name": "web-1", "tier": "gold", "note": "ü {{ name }} %s"}
    disks = [
        Sample("vm_disk", tags | {"disk": disk}, {"read_latency_seconds": latency}, now_ns)
        for disk, latency in (("vda", 0.001), ("vdb", 0.09))
    ]
    guest = Sample("vm", tags, {"cpu_usage_ratio": 0.125, "state_code": 1}, now_ns)
    (fired,) = evaluator.feed([*disks, guest], "kvm1/boot/1")
    alerts.signal(fired)
    assert until(lambda: _known(alertmanager, request.node.name))
    (alert,) = _known(alertmanager, request.node.name)
    assert alert["labels"]["severity"] == "critical"
    told = alert["annotations"]
    assert told["summary"] == "web-1 on kvm1 (gold): vdb takes long at 12.5 % CPU"
    assert told["runbook"] == "https://runbooks.example/disk-slow?severity=critical&vm=g-1"
    # What a guest's tags say is text, in whatever words.
    assert told["quoted"] == '<b>"ü {{ name }} %s"</b> unknown'
    assert "disks[vdb].read_latency_seconds=0.09" in told["inputs"]


def test_a_cleared_signal_resolves_it_although_the_guest_is_elsewhere_by_then(
    alerts: Alerts, alertmanager: Alertmanager, request: pytest.FixtureRequest
) -> None:
    alerts.signal(signal(FIRING, at_s=_now_s() - 10))
    assert until(lambda: _known(alertmanager, request.node.name))
    alerts.signal(signal(CLEARING, FIRING, at_s=_now_s() - 5))
    assert not until(lambda: not _known(alertmanager, request.node.name), within_s=0.5)
    alerts.signal(signal(INACTIVE, CLEARING, host="kvm2", at_s=_now_s()))
    assert until(lambda: not _known(alertmanager, request.node.name))
    assert alerts.dropped() == {"am": 0}


def test_a_host_and_a_clearing_nobody_saw_firing_are_told_too(
    alerts: Alerts, alertmanager: Alertmanager, request: pytest.FixtureRequest
) -> None:
    host = Subject(Kind.HOST, "kvm1", "kvm1", "", {})
    fired = msgspec.structs.replace(signal(FIRING, at_s=_now_s()), subject=host)
    alerts.signal(fired)
    assert until(lambda: _known(alertmanager, request.node.name))
    (alert,) = _known(alertmanager, request.node.name)
    assert (alert["labels"]["host"], alert["labels"]["kind"], "vm" in alert["labels"]) == ("kvm1", "host", False)
    # As after a restart with lost state: the resolution alone is sent, and finds its alert by the labels.
    later = _alerts(alertmanager.url, request.node.name)
    later.signal(msgspec.structs.replace(fired, previous=FIRING, state=INACTIVE, at_ns=_CLOCK.now_ns()))
    assert until(lambda: not _known(alertmanager, request.node.name))
    later.close(2.0)


def test_what_fires_is_repeated_before_its_end_and_ends_by_itself_when_nobody_repeats(
    make_alertmanager: MakeAlertmanager,
) -> None:
    server = make_alertmanager()
    alerts = _alerts(server.url, "repeat", repeat_s=1.0)
    alerts.signal(signal(FIRING, at_s=_now_s()))
    assert until(lambda: _known(server, "repeat"))
    first_end = _known(server, "repeat")[0]["endsAt"]

    def prolonged() -> bool:
        alerts.tick(_CLOCK.now_ns())
        return bool(_known(server, "repeat")[0]["endsAt"] > first_end)

    assert until(prolonged)
    alerts.close(2.0)
    assert until(lambda: not _known(server, "repeat"), within_s=10)


def test_an_alertmanager_that_comes_back_empty_hears_of_what_fires(make_alertmanager: MakeAlertmanager) -> None:
    server = make_alertmanager()
    alerts = _alerts(server.url, "back")
    alerts.signal(signal(FIRING, at_s=_now_s()))
    assert until(lambda: _known(server, "back"))
    server.kill()
    server.start()
    assert _known(server, "back") == []
    alerts.tick(_CLOCK.now_ns() + seconds(3600))
    assert until(lambda: _known(server, "back"))
    alerts.close(2.0)


def test_what_fired_before_a_restart_is_told_with_the_first_tick(
    alerts: Alerts, alertmanager: Alertmanager, request: pytest.FixtureRequest
) -> None:
    fired = signal(FIRING, at_s=_now_s() - 600)
    saved = msgspec.json.encode([fired])
    alerts.tick(_CLOCK.now_ns())
    alerts.resume(msgspec.json.decode(saved, type=list[Signal]))
    assert alerts.firing() == [fired]
    alerts.tick(_CLOCK.now_ns())
    assert until(lambda: _known(alertmanager, request.node.name))
    assert _at(_known(alertmanager, request.node.name)[0]["startsAt"]) == pytest.approx(_now_s() - 600, abs=20)
    alerts.signal(fired)
    alerts.signal(signal(INACTIVE, FIRING, at_s=_now_s()))
    assert until(lambda: not _known(alertmanager, request.node.name))


def test_many_go_in_few_requests_and_all_arrive(
    alerts: Alerts, alertmanager: Alertmanager, request: pytest.FixtureRequest
) -> None:
    for number in range(250):
        alerts.signal(signal(FIRING, guest=f"6d1f8b3c-0000-4000-8000-{number:012d}", at_s=_now_s()))
    assert until(lambda: len(_known(alertmanager, request.node.name)) == 250)
    assert alerts.waiting() == {"am": 0}
    assert alerts.sent() == {"am": 250}


def test_alertmanager_notifies_its_receivers_of_start_and_end(make_alertmanager: MakeAlertmanager) -> None:
    with listening() as receiver:
        server = make_alertmanager(
            "route: {receiver: hook, group_by: [alertname], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}\n"
            f"receivers: [{{name: hook, webhook_configs: [{{url: '{receiver.url}', send_resolved: true}}]}}]\n"
        )
        alerts = _alerts(server.url, "notify")
        alerts.signal(signal(FIRING, at_s=_now_s()))
        assert until(lambda: [body["status"] for _, body in receiver.bodies] == ["firing"], within_s=15)
        alerts.signal(signal(INACTIVE, FIRING, at_s=_now_s()))
        assert until(lambda: [body["status"] for _, body in receiver.bodies] == ["firing", "resolved"], within_s=15)
        alerts.close(2.0)
