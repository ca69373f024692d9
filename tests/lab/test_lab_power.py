"""Real guests suspended, shut down, started and rebooted by signed commands; what libvirt says of them is believed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from deploy import lab as lab_module
from deploy.lab import GuestPlan
from deploy.lab.container import Container, lacking
from deploy.lab.pilot import LabPilot
from tests.actuators.one_host import at, command
from tests.lab.commanding import Commander, commander
from tests.lab.lab_process import need_a_lab
from tests.services import lack, until
from virtpilot.action import Migrate, Power, Run, Verb
from virtpilot.actuators.caps import Caps
from virtpilot.actuators.executor import Executor
from virtpilot.actuators.journal import Journal
from virtpilot.clock import SystemClock
from virtpilot.hypervisor import GuestState
from virtpilot.libvirt_host import LibvirtHypervisor
from virtpilot.model import Result

pytestmark = [pytest.mark.lab, pytest.mark.slow]

NAME = "powerlab"
PLANS = (GuestPlan("web-1", "host-1"), GuestPlan("web-2", "host-2"))


@pytest.fixture(scope="module")
def giving() -> Iterator[Commander]:
    """A lab whose agents take commands."""
    need_a_lab()
    with lab_module.bring_up(NAME, plans=PLANS) as lab:
        pilot = LabPilot(lab)
        pilot.start()
        with commander(lab, pilot) as found:
            yield found
    assert lab_module.leftovers(NAME) == []


def state(giving: Commander, guest: str) -> str:
    return giving.lab.hosts["host-1"].virsh("domstate", guest).strip()


def test_each_state_is_brought_about_by_command(giving: Commander) -> None:
    guest = giving.lab.guest("web-1")

    def power(verb: Verb, within_s: float = 40) -> tuple[Result, str]:
        made = giving.give("host-1", Power(guest=guest.uuid, verb=verb, within_s=within_s))
        return made.result, made.reason

    def done(verb: Verb) -> None:
        result, reason = power(verb)
        assert result is Result.DONE, (verb, reason)

    done(Verb.SUSPEND)
    assert state(giving, "web-1") == "paused"
    assert power(Verb.SUSPEND) == (Result.DONE, "it is paused already")
    assert power(Verb.REBOOT)[0] is Result.REFUSED
    done(Verb.RESUME)
    assert state(giving, "web-1") == "running"
    guest.set_deaf(True)
    result, reason = power(Verb.SHUTDOWN, 4)
    assert (result, state(giving, "web-1")) == (Result.FAILED, "running")
    assert reason.startswith("not shut down within 4 s: the guest is running on host-1")
    guest.set_deaf(False)
    done(Verb.REBOOT)
    guest.set_load(0)  # it answers again
    done(Verb.SHUTDOWN)
    assert state(giving, "web-1") == "shut off"
    done(Verb.START)
    assert state(giving, "web-1") == "running"
    # The agent's caps say nothing of destroying.
    assert power(Verb.DESTROY) == (Result.REFUSED, "this host lets no guest be destroyed: destroy_guests is not set")
    assert state(giving, "web-1") == "running"


def test_a_program_on_the_hosts_list_is_run_and_no_other(giving: Commander) -> None:
    guest = giving.lab.guest("web-1")
    done = giving.give("host-1", Run(guest=guest.uuid, hook="note", fields={"name": "web-1"}))
    assert (done.result, done.action, done.reason) == (Result.DONE, "run note", "exit status 0")
    assert (giving.lab.folder / "virtpilot" / "note-web-1").exists()
    refused = giving.give("host-1", Run(guest=guest.uuid, hook="sh", fields={"name": "web-1"}))
    assert (refused.guard, refused.reason) == ("hook", "'sh' is not on the list of host-1: note")
    hostile = giving.give("host-1", Run(guest=guest.uuid, hook="note", fields={"name": "../../../tmp/x"}))
    assert hostile.guard == "value"


def test_a_container_does_what_it_can_and_refuses_what_it_cannot(giving: Commander, tmp_path: Path) -> None:
    if lacking():
        lack(f"this needs {', '.join(lacking())}")
    container = Container(giving.lab.hosts["host-2"], "box")
    container.start()
    hypervisor = LibvirtHypervisor(container.uri, clock=SystemClock())
    made = Executor(hypervisor, Journal(tmp_path / "journal.jsonl"), host="host-1", caps=Caps(destroy_guests=True))
    number = 0

    def ended(action: Power | Migrate) -> tuple[Result, str]:
        nonlocal number
        number += 1
        outcomes = made.submit(command(action, f"cm-{number}"), at(number))

        def over() -> bool:
            outcomes.extend(made.poll(at(number)))
            return bool(outcomes)

        assert until(over, 30)
        return outcomes[-1].result, outcomes[-1].guard

    def power(verb: Verb) -> tuple[Result, str]:
        return ended(Power(guest=container.uuid, verb=verb, within_s=30))

    assert power(Verb.SUSPEND) == (Result.DONE, "")
    assert hypervisor.state(container.uuid) is GuestState.PAUSED
    assert power(Verb.RESUME) == (Result.DONE, "")
    uri = giving.lab.hosts["host-1"].uri
    assert ended(Migrate(guest=container.uuid, target="host-9", uri=uri)) == (Result.REFUSED, "target")
    assert hypervisor.state(container.uuid) is GuestState.RUNNING
    assert power(Verb.DESTROY) == (Result.DONE, "")
    assert power(Verb.DESTROY) == (Result.DONE, "")
    # Off, it is asked for nothing that this libvirt would not survive.
    assert power(Verb.SHUTDOWN) == (Result.DONE, "")
    assert power(Verb.SUSPEND) == (Result.REFUSED, "state")
    assert power(Verb.START) == (Result.DONE, "")
    assert container.virsh("domstate", "box").strip() == "running"
    container.destroy()
    with closing(hypervisor):
        assert hypervisor.state(container.uuid) is GuestState.SHUTOFF
