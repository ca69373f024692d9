"""The lab's command: `python -m deploy.lab up|run|down|status|load|exec`. Exit status 0 done, 1 failed, 2 wrong use."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path

from deploy.lab import image, state
from deploy.lab.errors import LabError
from deploy.lab.lab import Lab, attach, bring_up, ended_by_signals
from deploy.lab.plan import PLANS


def say(text: str) -> None:
    """Tell the person at the terminal."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


def look_around(lab: Lab) -> str:
    """Return how to look at a lab that is up."""
    name = f" --name {lab.name}" if lab.name != "lab" else ""
    here = f"{_this_python()} -m deploy.lab{name}"
    uri = next(iter(lab.hosts.values())).uri
    return "\n".join(
        [
            f"  virsh -c {uri} list                    what a host runs",
            f"  {here} status                  where each guest is and what it waits for",
            f"  {here} load web-1 70           change a guest's load",
            f"  {here} exec host-1 -- top -b -n 1   run something on a host",
            f"  mosquitto_sub -V mqttv5 -h {lab.broker_host} -p {lab.broker_port} -v -t 'virtpilot/#'",
            f"  {lab.store_url}/vmui                   the store",
            f"  {here} down                    remove it",
        ]
    )


def _this_python() -> str:
    """Return the interpreter that runs this as it is typed here: a machine need not have a `python` of its own."""
    python, here = Path(sys.executable), Path.cwd()
    return str(python.relative_to(here) if python.is_relative_to(here) else python)


def _bring_up(options: argparse.Namespace) -> Lab:
    return bring_up(options.name, plans=PLANS[options.plan], network=options.network, cache=options.cache, say=say)


def up(options: argparse.Namespace) -> int:
    """Bring the lab up and stay until a signal, or leave it up with --keep."""
    with ended_by_signals(), _bring_up(options) as lab:
        if options.keep:
            lab.keep()
        say(f"up. To look around:\n{look_around(lab)}")
        pause = threading.Event()
        while not options.keep and lab.folder.exists():  # until a signal, or until another process took it down
            pause.wait(1.0)
    return 0


def run(options: argparse.Namespace) -> int:
    """Play the main job: a starved guest is noticed, helped and live-migrated."""
    from deploy.lab import scenario  # needs virtpilot's own packages, which the other subcommands do without
    from deploy.lab.pilot import RULES
    from virtpilot.pipeline.demo_run import summary

    with ended_by_signals(), _bring_up(options) as lab:
        if options.keep:
            lab.keep()
        rules = (options.rules or RULES).resolve()
        trail = scenario.run(lab, say, rules=rules, patience=options.patience)
        print(summary(trail))
        if options.keep:
            say(f"kept. To look around:\n{look_around(lab)}")
    return 0


def down(options: argparse.Namespace) -> int:
    """Remove a lab, also what a killed one left."""
    state.tear_down(options.name)
    say(f"nothing of lab {options.name!r} is left")
    return 0


def status(options: argparse.Namespace) -> int:
    """Print one JSON document about a lab that is up."""
    lab = attach(options.name)
    guests = {name: {"host": lab.where(name), **_vitals(lab.domstats(name))} for name in lab.guests}
    hosts = {name: {"uri": host.uri, "cpu": host.cpu, "pid": host.pid} for name, host in lab.hosts.items()}
    broker = f"{lab.broker_host}:{lab.broker_port}"
    document = {"name": lab.name, "broker": broker, "store": lab.store_url, "hosts": hosts, "guests": guests}
    print(json.dumps(document, indent=2))
    return 0


def _vitals(stats: dict[str, int | str]) -> dict[str, float]:
    wanted = {"cpu.time": "cpu_time_s", "vcpu.0.delay": "cpu_delay_s"}
    return {ours: int(stats[theirs]) / 1e9 for theirs, ours in wanted.items() if theirs in stats}


def load(options: argparse.Namespace) -> int:
    """Change a guest's load."""
    attach(options.name).guest(options.guest).set_load(options.percent)
    return 0


def execute(options: argparse.Namespace) -> int:
    """Run a command on a host; its exit status is ours."""
    host = attach(options.name).hosts.get(options.host)
    if host is None:
        raise LabError(f"no host {options.host!r} in the lab")
    return host.popen(options.command, cwd=Path("/")).wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.lab", description="Real libvirt hosts on one machine.")
    parser.add_argument("--name", default="lab", help="the lab's name, when there is more than one (%(default)s)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, work: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text)
        made.set_defaults(work=work)
        return made

    one = command("up", up, "bring the lab up and stay until Ctrl-C")
    one.add_argument("--keep", action="store_true", help="return, and leave the lab up")
    _add_what(one)
    one = command("run", run, "bring the lab up, play the main job on it, remove it")
    one.add_argument("--keep", action="store_true", help="leave the lab up")
    _add_what(one)
    one.add_argument("--rules", type=Path, help="rule file or folder in place of the lab's own")
    one.add_argument(
        "--patience", type=float, default=1.0, help="wait this many times as long for a step (%(default)s)"
    )
    command("down", down, "remove the lab, also what a killed one left")
    command("status", status, "one JSON document about hosts and guests")
    one = command("load", load, "change a guest's load")
    one.add_argument("guest")
    one.add_argument("percent", type=int, choices=range(101), metavar="0..100")
    one = command("exec", execute, "run a command on a host")
    one.add_argument("host")
    one.add_argument("command", nargs="+", metavar="-- COMMAND")
    return parser


def _add_what(command: argparse.ArgumentParser) -> None:
    """Add the options that say what lab is brought up."""
    command.add_argument("--plan", choices=PLANS, default="two", help="with how many hosts (%(default)s)")
    command.add_argument("--network", type=IPv4Network, help="a free /24 (default: found)")
    command.add_argument(
        "--cache", type=Path, default=image.DEFAULT_CACHE, help="folder of the guest image (%(default)s)"
    )


def main() -> int:
    """Run one subcommand."""
    options = _parser().parse_args()
    try:
        if os.geteuid():
            raise LabError("the lab needs root")
        return int(options.work(options))
    except LabError as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
