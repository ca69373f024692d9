"""The chain over real servers and processes: agents' uplinks → mosquitto → `virtpilot writer` → VictoriaMetrics.

Each link of it can be killed -9 at moments of chance. The moments come from the seed in the tests' header:
`--hypothesis-seed=N` plays them again.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

from tests.processes.running import Process, Site
from tests.services import Mosquitto, VictoriaMetrics, until
from virtpilot.clock import SECOND, SystemClock

CLUSTER = "carry"
ROOT = Path(__file__).parents[2]
# VictoriaMetrics has on disk what it took after that; a test with a real kill of it cannot hold shorter.
HOLD_S: Final = 12.0


class Agent:
    """A process of `agent_process`; killed and started again it goes on under another boot id."""

    def __init__(self, folder: Path, broker_port: int, host: str, resend_s: float) -> None:
        self.host = host
        self._said = folder / f"{host}.out"
        self._arguments = [str(broker_port), CLUSTER, host, str(resend_s), str(folder)]
        self._process: subprocess.Popen[bytes] | None = None
        self._said_before = 0

    def start(self) -> None:
        self._said_before = self._size()
        with self._said.open("ab") as out, self._said.with_suffix(".log").open("ab") as log:
            command = [sys.executable, "-m", "tests.carry.agent_process", *self._arguments]
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=log)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def begun(self) -> bool:
        """Whether it has measured since it was last started."""
        return self._size() > self._said_before

    def _size(self) -> int:
        return self._said.stat().st_size if self._said.exists() else 0

    def be_quiet(self) -> None:
        """Let it measure no more, once it has begun."""
        assert self._process is not None
        assert until(self.begun, 30), self.log()
        self._process.send_signal(signal.SIGUSR1)

    def _lines(self) -> list[list[str]]:
        text = self._said.read_text() if self._said.exists() else ""
        return [line.split() for line in text.rpartition("\n")[0].splitlines()]

    def sent(self) -> dict[str, int]:
        """How many samples each boot has certainly spooled."""
        return {boot: int(number) + 1 for boot, number in self._lines() if boot != "pending"}

    def pending(self) -> int:
        """What it last said of its spool."""
        told = [int(count) for word, count in self._lines() if word == "pending"]
        return told[-1] if told else -1

    def log(self) -> str:
        return self._said.with_suffix(".log").read_text()


class Chain:
    """Servers, agents and writers, each of which can be killed; ends all of them that it started."""

    def __init__(
        self,
        folder: Path,
        broker: Mosquitto,
        store: VictoriaMetrics,
        seed: int,
        hold_s: float = 0.5,
        resend_s: float = 4.0,
    ) -> None:
        folder.mkdir()
        self.broker = broker
        self.store = store
        self.chance = random.Random(seed)
        self._site = Site(folder, CLUSTER, broker.port)
        self._hold_s = hold_s
        self._start_s = SystemClock().now_ns() / SECOND
        self.agents = [Agent(folder, broker.port, host, resend_s) for host in ("h1", "h2")]
        self.writers: list[Process] = []

    def begin(self, writers: int = 1) -> None:
        """Start all and wait until something has gone the whole way."""
        for number in range(1, writers + 1):
            options: dict[str, Any] = {"store": {"url": self.store.url, "hold_s": self._hold_s, "timeout_s": 2.0}}
            # A dead writer's share waits for it so long and is then sent again.
            bus = {"session_expiry_s": 4}
            self.writers.append(self._site.process("writer", f"w{number}", bus=bus, **options).start())
        for agent in self.agents:
            agent.start()
        for writer in self.writers:
            writer.up()
            writer.reaches("virtpilot_writer_messages_total", 5, 40)

    def pass_time(self, least_s: float, most_s: float) -> None:
        """Let some time pass, by chance."""
        assert not until(lambda: False, self.chance.uniform(least_s, most_s), every_s=0.05)

    def measured(self) -> int:
        """How many samples the agents have certainly spooled so far."""
        return sum(sum(agent.sent().values()) for agent in self.agents)

    def finish(self, within_s: float = 60.0) -> None:
        """Stop measuring and wait until everything is reported stored."""
        for agent in self.agents:
            agent.be_quiet()
        empty = until(lambda: all(agent.pending() == 0 for agent in self.agents), within_s, every_s=0.1)
        assert empty, [(agent.host, agent.pending(), agent.log()) for agent in self.agents]

    def count(self) -> int:
        """Every sample is in the store, none missing, none twice; return how many."""
        total = 0
        for agent in self.agents:
            stored = self._stored(agent.host)
            for boot, sent in agent.sent().items():
                numbers = sorted(stored.get(boot, []))
                # It may have been killed between a sample's way to the disk and its word for it.
                assert numbers == list(range(len(numbers))), (agent.host, boot, sent, numbers)
                assert sent <= len(numbers) <= sent + 1, (agent.host, boot, sent, len(numbers))
                total += len(numbers)
        assert total > 50
        return total

    def _stored(self, host: str) -> dict[str, list[int]]:
        now_s = SystemClock().now_ns() / SECOND
        rows = self.store.export(f'carry_number{{host="{host}"}}', self._start_s - 5, now_s + 5).splitlines()
        found: dict[str, list[int]] = {}
        for row in map(json.loads, rows):
            found.setdefault(row["metric"]["boot"], []).extend(map(int, row["values"]))
        return found

    def end(self) -> None:
        for agent in self.agents:
            agent.kill()
        self._site.close()


MakeChain: TypeAlias = Callable[..., Chain]
