"""The wall clock set an hour forward or back while all works: nothing lost, repeated, wrongly measured or acted on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.demos import CPU_RULES
from virtpilot.lineprotocol import parse
from virtpilot.model import Decision, Sample
from virtpilot.pipeline.demo import Demo

HOUR_S = 3600


def stored(demo: Demo) -> dict[str, list[Sample]]:
    return {message_id: parse(lines).samples for message_id, lines in demo.store.read()}


def acted_on(demo: Demo) -> set[str]:
    decisions = [entry.record for entry in demo.controller.entries() if isinstance(entry.record, Decision)]
    return {decision.subject.id for decision in decisions if decision.accepted}


@pytest.fixture(scope="module")
def in_need(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The guests that are helped where no clock is set."""
    even = Demo(tmp_path_factory.mktemp("even"), rules=CPU_RULES)
    for _second in range(150):
        even.step()
    even.close()
    return acted_on(even)


@pytest.mark.parametrize("by_s", [-HOUR_S, HOUR_S])
def test_the_whole_chain_takes_no_harm(tmp_path: Path, in_need: set[str], by_s: float) -> None:
    demo = Demo(tmp_path, rules=CPU_RULES)
    for second in range(150):
        if second in (50, 100):
            demo.clock.step(by_s if second == 50 else -by_s)
        demo.step()
    assert acted_on(demo) <= in_need, "only a guest that needs it is helped, whatever the clock says"
    demo.close()
    agents = {agent.host: agent for agent in demo.agents}
    messages = stored(demo)
    numbers = Counter(message_id.partition("/")[0] for message_id in messages)
    assert numbers == {host: agent.uplink.spooled for host, agent in agents.items()}
    assert all(agent.uplink.spooled >= agent.ticks == 31 for agent in agents.values()), "the beat is kept"
    assert [agent.uplink.resent for agent in agents.values()] == [0] * len(agents)
    assert all(agent.uplink.pending <= 1 for agent in agents.values()), "all but the last is reported"
    samples = [sample for found in messages.values() for sample in found]
    ratios = [
        (name, value)
        for sample in samples
        for name, value in sample.fields.items()
        if name in {"cpu_usage_ratio", "cpu_steal_ratio", "cpu_iowait_ratio"}
    ]
    assert len(ratios) > 500
    assert all(0 <= value <= 1.01 for _, value in ratios), "a rate over the wrong time"
