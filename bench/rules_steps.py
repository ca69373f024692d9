"""The evaluator alone on the load of `rules_fleet`, without broker and controller: where a change is looked at first.

    python -m bench.rules_steps [TICKS]

Prints the CPU time of a host's message (50 guests with their devices): its lines read, its rules evaluated; and of the
tick that comes each second. The windows are full. The last number tells two versions' signals apart.
"""

from __future__ import annotations

import hashlib
import sys
from time import process_time
from typing import Final

import msgspec

from bench.rules_agents import GUESTS, HOSTS, TICK_S
from bench.rules_load import fleet
from bench.rules_past import fill_windows
from virtpilot.clock import SECOND
from virtpilot.model import Signal
from virtpilot.pipeline.rulebook import LIBRARY, Rulebook, RuleOptions

_BEGIN_NS: Final = 1_700_000_000 * SECOND
_GAP_NS: Final = TICK_S * SECOND // HOSTS
_A_SECOND: Final = HOSTS // TICK_S


class Steps:
    """A fleet's messages, one after the other."""

    def __init__(self) -> None:
        self._book = Rulebook(RuleOptions(paths=[str(LIBRARY)]))
        self._hosts = fleet(HOSTS, GUESTS, hot_guests=4)
        self.took = {"read": 0.0, "feed": 0.0, "tick": 0.0}
        self.digest = hashlib.sha256()

    def run(self, first: int, last: int) -> None:
        """Feed messages by their numbers."""
        for number in range(first, last):
            now_ns = _BEGIN_NS + number * _GAP_NS
            self._feed(number, now_ns)
            if number % _A_SECOND == _A_SECOND - 1:
                begun = process_time()
                signals = self._book.evaluator.tick(now_ns)
                self._took("tick", begun, signals)

    def _feed(self, number: int, now_ns: int) -> None:
        tick, place = divmod(number, HOSTS)
        host = self._hosts[place]
        for payload in host.face(tick, hot=(tick + place) % 10 < 5).at(now_ns):
            begun = process_time()
            lines = self._book.reader.read(payload)
            self._took("read", begun, [])
            begun = process_time()
            self._took("feed", begun, self._book.evaluator.feed_messages([(lines, f"{host.name}/b/{number}")]))

    def _took(self, what: str, begun: float, signals: list[Signal]) -> None:
        self.took[what] += process_time() - begun
        for signal in signals:
            self.digest.update(msgspec.json.encode(signal))

    def fill(self) -> None:
        """Give all that has been measured a past of two hours."""
        fill_windows(self._book.evaluator.world)


def main() -> None:
    """Measure some ticks of the fleet, after one that learns it and one that does not count."""
    ticks = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    steps = Steps()
    steps.run(0, HOSTS)
    steps.fill()
    steps.run(HOSTS, 2 * HOSTS)
    steps.took = dict.fromkeys(steps.took, 0.0)
    steps.run(2 * HOSTS, (2 + ticks) * HOSTS)
    messages, ms = ticks * HOSTS, {name: took * 1e3 for name, took in steps.took.items()}
    share = sum(steps.took.values()) / (ticks * TICK_S)
    sys.stdout.write(
        f"read {ms['read'] / messages:.2f} ms and feed {ms['feed'] / messages:.2f} ms a message, "
        f"tick {ms['tick'] / ticks / TICK_S:.2f} ms a second: {share:.3f} cores; {steps.digest.hexdigest()[:16]}\n"
    )


if __name__ == "__main__":
    main()
