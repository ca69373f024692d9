"""Nothing of a lab stays, however the process ends that brought it up."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from deploy import lab as lab_module
from deploy.lab import LabBusy, state
from deploy.lab.cgroup import Group, hierarchies
from deploy.lab.pilot import RULES
from tests.lab.lab_process import ENVIRONMENT, ROOT, command, need_a_lab, ran

pytestmark = [pytest.mark.lab, pytest.mark.slow]

KILLED = "labkill"


class Start(Protocol):
    """Starts a lab in another process."""

    def __call__(self, text: str, subcommand: str = "up") -> subprocess.Popen[str]:
        """Return it once it has said `text`."""


def test_commands_on_no_lab_say_so_and_down_is_harmless() -> None:
    need_a_lab()
    done = ran("nolab", "status")
    assert (done.returncode, done.stderr) == (1, "lab: no lab named 'nolab' is up\n")
    assert ran("nolab", "down").returncode == 0


@pytest.fixture
def bring_up_until() -> Iterator[Start]:
    """Starts a lab in another process and returns once it has said the text."""
    need_a_lab()
    started: list[subprocess.Popen[str]] = []

    def start(text: str, subcommand: str = "up") -> subprocess.Popen[str]:
        child = subprocess.Popen(
            command(KILLED, subcommand),
            cwd=ROOT,
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(child)
        assert child.stderr is not None
        assert any(text in line for line in child.stderr), "the lab did not come so far"
        return child

    yield start
    for child in started:
        child.kill()
        child.wait(30)
        if child.stderr is not None:
            child.stderr.close()
    lab_module.tear_down(KILLED)


@pytest.mark.parametrize("text", ["hosts up", pytest.param("guests up", marks=pytest.mark.long)])
def test_down_removes_what_a_killed_lab_left(bring_up_until: Start, text: str) -> None:
    child = bring_up_until(text)
    child.kill()
    child.wait(10)
    left = " ".join(lab_module.leftovers(KILLED))
    for kind in ("process ", "mount namespace ", "cgroup ", "network device ", "folder "):
        assert kind in left
    assert ran(KILLED, "down").returncode == 0
    assert lab_module.leftovers(KILLED) == []


def test_empty_groups_that_no_file_tells_of_are_nobodys_until_a_process_is_in_them() -> None:
    """So a lab looks that was killed where another /run was mounted, in a root of its own."""
    need_a_lab()
    group = Group(f"virtpilot-{KILLED}-control", hierarchies())
    group.create()
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert state.abandoned(KILLED)
        for door in group.doors():
            door.write_text(str(child.pid))
        assert not state.abandoned(KILLED)
        with pytest.raises(LabBusy, match=f"--name {KILLED} down"):
            state.claim(KILLED, "10.77.0.0/24", {})
    finally:
        child.kill()
        child.wait(10)
        lab_module.tear_down(KILLED)
    assert not state.abandoned(KILLED)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.long), signal.SIGINT])
def test_signal_in_the_middle_of_bring_up_leaves_nothing(bring_up_until: Start, number: signal.Signals) -> None:
    child = bring_up_until("broker ")
    child.send_signal(number)
    assert child.wait(40) == 128 + number
    assert lab_module.leftovers(KILLED) == []


def test_ctrl_c_in_the_middle_of_the_main_job_leaves_nothing(bring_up_until: Start) -> None:
    child = bring_up_until("gets busy", "run")
    child.send_signal(signal.SIGINT)
    assert child.wait(40) == 128 + signal.SIGINT
    assert lab_module.leftovers(KILLED) == []


@pytest.mark.alone  # the host must be busy by its own guests, for the rule to fire
def test_step_that_did_not_happen_is_named_and_ends_with_status_1(tmp_path: Path) -> None:
    """A rule that only observes raises no shares: the lab sees that in libvirt, whatever the log says."""
    need_a_lab()
    (shipped,) = RULES.glob("*.yaml")
    (tmp_path / "observing.yaml").write_text(shipped.read_text().replace("mode: act", "mode: observe"))
    done = ran(KILLED, "run", "--rules", str(tmp_path), "--patience", "0.4")
    assert (done.returncode, done.stdout) == (1, "")
    assert "did not happen within 24 s: a remedy raised its CPU shares" in done.stderr
    assert "refused by mode" in done.stderr
    assert lab_module.leftovers(KILLED) == []
