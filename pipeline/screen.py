"""The demo's live screen: hosts and guests with bars, and what is being noticed, decided and done."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from virtpilot.events import Event
from virtpilot.model import Command, Decision, Outcome, Result, Signal, SignalState
from virtpilot.pipeline.records import Entry
from virtpilot.pipeline.trail import changes, describe, happened, number
from virtpilot.simulator.view import FleetView, GuestView, HostView

_STATES = {
    SignalState.PENDING: "yellow",
    SignalState.FIRING: "bold red",
    SignalState.CLEARING: "cyan",
    SignalState.INACTIVE: "green",
}
_RESULTS = {Result.DONE: "green", Result.EFFECTIVE: "bold green", Result.REVERTED: "cyan", Result.INEFFECTIVE: "yellow"}

_BAR_MIN: Final = 6  # cells


def screen(view: FleetView, entries: Iterable[Entry], names: dict[str, str], *, lines: int = 14) -> RenderableType:
    """Return the whole screen at one moment."""
    newest = list(entries)[-lines:]
    events = Table.grid(padding=(0, 1))
    for entry in newest:
        events.add_row(*_event(entry, names))
    title = f"virtpilot demo   {_clock(view.now_ns)} (virtual time)"
    return Group(
        Panel(_fleet(view), title=title, border_style="blue"),
        Panel(events, title="signals, decisions, outcomes", border_style="blue", height=lines + 2),
    )


def _fleet(view: FleetView) -> Table:
    table = Table(expand=True, box=None, padding=(0, 1))
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_column("CPU", ratio=1, min_width=_BAR_MIN)  # bars take what is left: numbers are shown in full
    table.add_column(no_wrap=True)
    table.add_column("steal", justify="right", no_wrap=True)
    table.add_column("shares", justify="right", no_wrap=True)
    table.add_column("memory", ratio=1, min_width=_BAR_MIN)
    table.add_column(no_wrap=True)
    for host in view.hosts:
        table.add_row(*_host(host))
        for guest in sorted(view.guests, key=lambda guest: guest.name):
            if guest.host == host.name:
                table.add_row(*_guest(guest))
    return table


def _host(host: HostView) -> list[RenderableType]:
    memory = host.memory_used_bytes / host.memory_bytes if host.memory_bytes else 0.0
    name = Text(host.name, "bold" if host.online else "bold red strike")
    usage = Text(f"{host.cpu_usage_ratio:4.0%} of {host.cpus}", "bold")
    return [name, _bar(host.cpu_usage_ratio, 0.85), usage, "", "", _bar(memory, 0.9), Text(f"{memory:4.0%}", "bold")]


def _guest(guest: GuestView) -> list[RenderableType]:
    memory = guest.memory_used_bytes / guest.memory_bytes if guest.memory_bytes else 0.0
    tier = guest.tags.get("tier", "")
    steal = Text(f"{guest.cpu_steal_ratio:4.0%}", "bold red" if guest.cpu_steal_ratio > 0.1 else "green")
    shares = Text(str(guest.cpu_shares), "bold yellow" if guest.cpu_shares != 1024 else "dim")
    move = ""
    if guest.migration is not None:
        move = f" → {guest.migration.target} {guest.migration.progress_ratio:.0%}"
    name = Text.assemble("  ", guest.name, (f" {tier}", "dim"), (move, "bold magenta"))
    usage = Text(f"{guest.cpu_usage_ratio:4.0%}")
    return [name, _bar(guest.cpu_usage_ratio, 2.0), usage, steal, shares, _bar(memory, 2.0), Text(f"{memory:4.0%}")]


def _bar(ratio: float, hot: float) -> ProgressBar:
    style = "red" if ratio > hot else "cyan"
    return ProgressBar(total=1.0, completed=min(ratio, 1.0), complete_style=style, finished_style=style)


def _clock(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns / 1e9, UTC).strftime("%H:%M:%S")


def _event(entry: Entry, names: dict[str, str]) -> tuple[Text, Text, Text]:
    style, what = _words(entry, names)
    return (
        Text(_clock(entry.at_ns), "dim"),
        Text(entry.kind, style),
        Text(what, style, no_wrap=True, overflow="ellipsis"),
    )


def _words(entry: Entry, names: dict[str, str]) -> tuple[str, str]:
    record = entry.record
    match record:
        case Signal():
            values = ", ".join(f"{key} {number(key, value)}" for key, value in sorted(record.inputs.items()))
            return _STATES[record.state], f"{record.rule} on {record.subject.name}: {record.state}  {values}"
        case Decision():
            what = describe(record.action) if record.action else f"remedy {record.rung + 1}"
            if record.accepted:
                return "green", f"{record.subject.name}: {what} ({record.reason})"
            return "yellow", f"{record.subject.name}: {what} refused by {record.guard}: {record.reason}"
        case Command():
            return "white", f"{describe(record.action)} on {record.host}"
        case Outcome():
            name = names.get(record.guest, record.guest)
            tail = "  ".join(filter(None, (changes(record), record.reason)))
            return _RESULTS.get(record.result, "red"), f"{name}: {record.action} {record.result}  {tail}"
        case Event():
            return "magenta", f"{record.name or record.host}: {happened(record)}"


def line(entry: Entry, names: dict[str, str]) -> str:
    """Return an entry as a plain line."""
    return f"{_clock(entry.at_ns)} {entry.kind:8} {_words(entry, names)[1]}"
