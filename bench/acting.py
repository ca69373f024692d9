"""From a command to its effect on a real guest, and how many commands one controller gives."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles
from threading import Event
from time import process_time
from typing import Final

from bench.measure import Figure, Unmeasured, figure, say
from deploy.lab import GuestPlan, Lab, LabError, bring_up, ended_by_signals
from virtpilot.action import SetKnob
from virtpilot.actuators.command import Signer, generate, load_private
from virtpilot.actuators.guards.options import GuardOptions
from virtpilot.clock import SECOND, SystemClock
from virtpilot.model import Command, Kind, Message, Sample
from virtpilot.pipeline.bus.mqtt import MqttBus
from virtpilot.pipeline.bus.mqtt_options import MqttOptions
from virtpilot.pipeline.rehearsal import Rehearsal
from virtpilot.pipeline.standin import Reply
from virtpilot.rules.language import load
from virtpilot.topics import Topics

_COMMANDS: Final = 100
_WAIT_S: Final = 10.0
_LOOK_S: Final = 0.0005
_HOSTS: Final = 50
_GUESTS_A_HOST: Final = 40
_START: Final = 1_700_000_000 * SECOND
_CONFIG: Final = """
cluster = "bench"
host = "host-1"
state_folder = "{folder}/state"
[bus]
host = "{broker}"
port = {port}
[commands]
public_key_files = ["{folder}/keys/controller.pub"]
"""
_RULE: Final = """
virtpilot: 1
rules:
  - name: starved
    on: vm
    when: cpu_steal_ratio > 10%
    mode: act
    remedies:
      - set: {cpu_shares: current * 2}
        lease: 15m
"""


def measure(runs: int) -> dict[str, Figure]:
    """Measure both; the first is left out where no lab can be."""
    found = {"commands_per_s": _commands(runs)}
    try:
        found["command_to_effect_p99_ms"] = _effect(runs)
    except LabError as error:
        say(f"command_to_effect_p99_ms: left out: {error}")
    if not found:
        raise Unmeasured("neither could be measured")
    return found


def _commands(runs: int) -> Figure:
    """Let every guest of a fleet starve at once, and count the commands in a second of CPU time."""
    each = [_all_at_once() for _ in range(runs + 1)][1:]
    what = (
        f"{_HOSTS * _GUESTS_A_HOST} guests on {_HOSTS} simulated hosts starve at once: samples read, rule evaluated,"
        " matched, guarded, decided, signed, published, answered by their agents, outcomes taken; the agents' part too"
    )
    return figure(each, "commands a second of CPU", what, at_least=1_000)


def _all_at_once() -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rules.yaml"
        path.write_text(_RULE)
        site = Rehearsal(load([path]), _START, lambda _command: Reply(), guards=GuardOptions(warm_up_s=0))
        for host in range(_HOSTS):
            site.measure(f"host-{host}", list(_samples(host, 0.0, site.clock.now_ns())))
        site.run_until(site.clock.now_ns() + 5 * SECOND)
        began = process_time()
        for host in range(_HOSTS):
            site.measure(f"host-{host}", list(_samples(host, 0.5, site.clock.now_ns())))
        site.run_until(site.clock.now_ns() + 5 * SECOND)
        took_s = process_time() - began
        counters = site.controller.counters
        if counters.outcomes.get("done") != counters.commands or not counters.commands:
            raise AssertionError(f"{counters.commands} commands, outcomes {counters.outcomes}")
        return counters.commands / took_s


def _samples(host: int, steal: float, now_ns: int) -> Iterator[Sample]:
    name = f"host-{host}"
    yield Sample(Kind.HOST, {"host": name}, {"cpu_usage_ratio": 0.9, "cpus_count": 16}, now_ns)
    for guest in range(_GUESTS_A_HOST):
        tags = {"host": name, "vm": f"uuid-{host}-{guest}", "name": f"guest-{host}-{guest}"}
        fields = {"state_code": 1, "cpu_usage_ratio": 0.5, "cpu_steal_ratio": steal, "vcpus_count": 2}
        yield Sample(Kind.VM, tags, fields, now_ns)
        yield Sample("knob", {**tags, "knob": "cpu_shares"}, {"value_count": 1024}, now_ns)


def _effect(runs: int) -> Figure:
    """Publish signed commands, and look into the guest's control group until the kernel has what was asked for."""
    plans = [GuestPlan("guest-1", "host-1", tags={"tier": "bench"})]
    with ended_by_signals(), bring_up("actbench", plans=plans, say=say) as lab:
        bench = _Effect(lab)
        try:
            each = [bench.p99_ms() for _ in range(runs + 1)][1:]
        finally:
            bench.close()
    what = (
        f"{_COMMANDS} commands a run, one after the other, from the signed payload being published to cpu.shares (or"
        " cpu.weight) of the guest's control group having changed; mosquitto, agent and libvirtd are processes of their"
        " own, the agent's journal is on disk"
    )
    return figure(each, "ms", what, at_most=1_000, measured={"p50_ms": bench.p50_ms})


class _Effect:
    """An agent in the lab, and one who plays its controller."""

    def __init__(self, lab: Lab) -> None:
        self.p50_ms = 0.0
        self._clock = SystemClock()
        self._guest = lab.guest("guest-1").uuid
        self._topics, self._value, self._count = Topics("bench"), 1024, 0
        folder = lab.folder / "bench"
        folder.mkdir()
        generate(folder / "keys")
        self._signer = Signer(load_private(folder / "keys/controller.key"))
        config = folder / "agent.toml"
        config.write_text(_CONFIG.format(folder=folder, broker=lab.broker_host, port=lab.broker_port))
        with (folder / "agent.log").open("wb") as log:
            words = [sys.executable, "-m", "virtpilot.pipeline", "agent", "--config", str(config)]
            lab.hosts["host-1"].popen(words, output=log)
        self._bus = MqttBus(MqttOptions(host=lab.broker_host, port=lab.broker_port), "commander")
        self._bus.subscribe(self._topics.status("host-1"))
        self._bus.subscribe(self._topics.outcomes("host-1"))
        if self._bus.receive(60.0) is None:
            raise LabError(f"the agent does not come up: {(folder / 'agent.log').read_text()[-2000:]}")
        self._file = self._shares_file()

    def _shares_file(self) -> Path:
        for name in ("cpu.shares", "cpu.weight"):
            for file in Path("/sys/fs/cgroup").rglob(name):
                if "actbench" in str(file) and file.parent.name.endswith(("guest-1.scope", "guest-1.libvirt-qemu")):
                    return file
        raise LabError("the guest's control group is not found")

    def p99_ms(self) -> float:
        """Return what nearly all of a run's commands took."""
        took = [self._one() for _ in range(_COMMANDS)]
        cuts = quantiles(took, n=100)
        self.p50_ms = cuts[49]
        return cuts[98]

    def _one(self) -> float:
        before, self._count, never = self._file.read_text(), self._count + 1, Event()
        value = 2048 if self._value == 1024 else 1024
        now_ns = self._clock.now_ns()
        action = SetKnob(guest=self._guest, knob="cpu_shares", value=value, expected=self._value, lease_s=600)
        command = Command(
            id=f"cm-{now_ns}-{self._count}",
            cause="dc-bench",
            host="host-1",
            action=action,
            rule="bench",
            issued_ns=now_ns,
            not_after_ns=now_ns + 60 * SECOND,
            epoch=1,
        )
        payload = self._signer.seal(command)
        began_ns = self._clock.monotonic_ns()
        self._bus.publish(Message(self._topics.commands("host-1"), payload, expiry_s=60))
        while self._file.read_text() == before:
            if self._clock.monotonic_ns() - began_ns > _WAIT_S * SECOND:
                raise LabError(f"no effect within {_WAIT_S:g} s")
            never.wait(_LOOK_S)
        took_ns = self._clock.monotonic_ns() - began_ns
        self._value = value
        # The outcome, so that commands do not queue up.
        delivery = self._bus.receive(_WAIT_S)
        if delivery is not None:
            delivery.ack()
        return took_ns / 1e6

    def close(self) -> None:
        self._bus.close()
