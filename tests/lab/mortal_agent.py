"""`python -m tests.lab.mortal_agent CONFIG [POINT]`: a lab host's agent, which ends by SIGKILL at a named point."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from virtpilot.actuators.lifecycle import Point
from virtpilot.clock import SystemClock
from virtpilot.pipeline import agent_assembly, settings
from virtpilot.pipeline.agent_config import AgentConfig


def main(config: Path, point: str) -> None:
    """Run the agent until it is told to stop, or comes to the point."""

    def reached(passed: Point) -> None:
        if passed == point:
            os.kill(os.getpid(), signal.SIGKILL)

    made = agent_assembly.agent_from(settings.load(config, AgentConfig), SystemClock())
    made.executor._site.reached = reached
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    made.run(stop)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
