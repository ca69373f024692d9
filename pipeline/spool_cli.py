"""The commands about what waits on disk: `virtpilot spool …`, an agent's spool and a writer's dead letters."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from virtpilot.errors import InputError, Problem
from virtpilot.pipeline.output import print_json, quiet_logs

app = typer.Typer(help="An agent's spool and a writer's dead letters.", no_args_is_help=True)

Folder = Annotated[
    Path, typer.Argument(help="A spool, dead letters, or the state folder that has one.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command("ls")
def spool_ls(folder: Folder, json: Json = False) -> None:
    """Tell what is kept: how much, how old, which numbers, which reasons."""
    document = _document(folder)
    if json:
        print_json(document)
    else:
        typer.echo("\n".join(_lines(document)))


def _document(folder: Path) -> dict[str, Any]:
    from virtpilot.pipeline import kept

    spool = kept.spool_folder(folder)
    if spool is not None:
        return kept.spool_document(spool)
    letters = kept.letters_of(folder)
    if not letters:
        raise kept.neither(folder)
    return kept.letters_document(letters)


def _lines(document: dict[str, Any]) -> list[str]:
    spool = document["kind"] == "spool"
    count = f"{document['messages']} messages" if spool else f"{document['lines']} lines"
    span = f", {document['oldest']} to {document['newest']}" if "oldest" in document else ""
    lines = [f"{document['kind']}: {count}, {document['bytes']} bytes{span}"]
    for boot in document.get("boots", ()):
        numbers = ", ".join(f"{first}-{last}" if first < last else str(first) for first, last in boot["sequences"])
        lines.append(f"  boot {boot['boot']}: {boot['messages']} messages, {numbers}")
    lines += [f"  {number} lines: {reason}" for reason, number in document.get("reasons", {}).items()]
    for file in document.get("segments", document.get("files", ())):
        torn = next(
            (f", {file[name]} {name.replace('_', ' ')}" for name in ("torn_bytes", "torn_lines") if file.get(name)), ""
        )
        number = file["messages"] if spool else file["lines"]
        lines.append(f"  {file['file']}: {number} {'messages' if spool else 'lines'}, {file['bytes']} bytes{torn}")
    return lines


@app.command("show")
def spool_show(
    folder: Folder,
    boot: Annotated[str, typer.Option(help="Only of this boot.")] = "",
    seq: Annotated[int | None, typer.Option(help="Only this number.")] = None,
    json: Json = False,
) -> None:
    """Print the lines themselves; 1 where there are none such."""
    from virtpilot.pipeline import kept
    from virtpilot.pipeline.dead_letters import read_letters

    spool = kept.spool_folder(folder)
    if spool is not None:
        shown = [
            kept.message_document(entry, payload)
            for entry, payload in kept.messages(spool)
            if boot in ("", entry.boot) and seq in (None, entry.seq)
        ]
    else:
        files = kept.letters_of(folder)
        if not files:
            raise kept.neither(folder)
        if boot or seq is not None:
            raise typer.BadParameter("dead letters have no boot and no number")
        shown = [kept.letter_document(letter) for file in files for letter in read_letters(file)[0]]
    if json:
        print_json(shown)
    for one in () if json else shown:
        head = (
            f"# {one['boot']}/{one['seq']} {one['at']}"
            if "boot" in one
            else f"# {one['at']} {one['topic']}: {one['reason']}"
        )
        typer.echo("\n".join([head, *one.get("lines", [one.get("line", "")])]))
    if not shown:
        raise typer.Exit(1)


@app.command("replay")
def spool_replay(
    folder: Folder,
    config: Annotated[
        Path,
        typer.Option(
            "--config", help="An agent's TOML file: over its bus; a writer's: into its store.", show_default=False
        ),
    ],
    process: Annotated[str, typer.Option(help="agent or writer; by the config file's name.")] = "",
    host: Annotated[str, typer.Option(help="Whose spool it is; by the agent's config.")] = "",
    within_s: Annotated[float, typer.Option("--within", min=1, help="Seconds that it may take.")] = 120.0,
    json: Json = False,
) -> None:
    """Send again, under the same numbers, what is kept; 1 where something is left, or a process uses the folder."""
    import msgspec

    from virtpilot.pipeline import kept, replaying

    quiet_logs()
    spool, letters = kept.spool_folder(folder), kept.letters_of(folder)
    if spool is None and not letters:
        raise kept.neither(folder)
    with kept.nobody_else(spool or letters[0]):
        if (process or config.stem) == "agent":
            done = _over_the_bus(spool, config, host, within_s)
        else:
            done = _into_the_store(spool, letters, config, host, within_s)
    total = replaying.Replayed(
        sum(one.stored for one in done), sum(one.left for one in done), [why for one in done for why in one.refused]
    )
    if json:
        print_json(msgspec.to_builtins(total))
    else:
        typer.echo("\n".join([f"{total.stored} stored, {total.left} left", *total.refused]))
    if total.left:
        raise typer.Exit(1)


def _over_the_bus(spool: Path | None, file: Path, host: str, within_s: float) -> list[Any]:
    import msgspec

    from virtpilot.clock import SystemClock
    from virtpilot.pipeline import replaying, settings
    from virtpilot.pipeline.agent_config import AgentConfig
    from virtpilot.pipeline.bus.mqtt import MqttBus
    from virtpilot.topics import Topics

    if spool is None:
        raise InputError([Problem(str(file), 0, 0, "dead letters go into the store: name a writer's config")])
    config = settings.load(file, AgentConfig)
    name = host or config.host or socket.gethostname()
    # A session of its own that ends with it: the agent's waits for the agent.
    options = msgspec.structs.replace(config.bus, session_expiry_s=0)
    bus = MqttBus(options, f"virtpilot-{config.cluster}-replay-{name}")
    try:
        return [replaying.to_bus(spool, bus, Topics(config.cluster), name, SystemClock(), within_s)]
    finally:
        bus.close()


def _into_the_store(spool: Path | None, letters: list[Path], file: Path, host: str, within_s: float) -> list[Any]:
    from virtpilot.clock import SystemClock
    from virtpilot.pipeline import replaying, settings, writer_service
    from virtpilot.pipeline.writer_config import WriterConfig

    config = settings.load(file, WriterConfig)
    if spool is not None and not host:
        raise typer.BadParameter("whose spool is it? say --host")
    clock, wait = SystemClock(), threading.Event().wait
    store = writer_service.store_from(config, clock)
    try:
        if spool is not None:
            return [replaying.to_store(spool, store, host, clock, within_s, wait)]
        return [replaying.letters_to_store(path, store, clock, within_s, wait) for path in letters]
    finally:
        store.close()
