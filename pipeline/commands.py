"""All commands with their options: what of them needs a library to read it; `plain` has the rest."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from virtpilot.clock import SystemClock
from virtpilot.model import Mode
from virtpilot.pipeline import operator_cli, plain, rules_cli, spool_cli
from virtpilot.pipeline.audit import audit_cli
from virtpilot.pipeline.moment import moment, moment_meant
from virtpilot.pipeline.output import print_json, quiet_logs

app = typer.Typer(
    help="The automatic pilot for plain libvirt hosts.", no_args_is_help=True, pretty_exceptions_enable=False
)
config_app = typer.Typer(help="Config files.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(rules_cli.app, name="rules")
app.add_typer(spool_cli.app, name="spool")
app.add_typer(audit_cli.app, name="audit")
app.add_typer(operator_cli.app, name="approvals")
app.command()(operator_cli.stop)
app.command()(operator_cli.resume)
app.command()(operator_cli.maintenance)


class KeyName(StrEnum):
    """Who signs."""

    CONTROLLER = "controller"
    OPERATOR = "operator"


CONTROLLER = plain.FILES["controller"]
ConfigFile = Annotated[Path, typer.Option("--config", help="The process's TOML file.", show_default=False)]


def _version(wanted: bool) -> None:
    if wanted:
        plain.say_version()
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")] = False,
) -> None:
    """Say what there is."""


@app.command()
def demo(
    seconds: Annotated[float | None, typer.Option(min=1, help="End after so many seconds of your time.")] = None,
    headless: Annotated[bool, typer.Option(help="Plain lines in place of the live screen.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document at the end.")] = False,
    speed: Annotated[float, typer.Option(min=1, max=600, help="Virtual seconds in a second of your time.")] = 30.0,
    scenario: Annotated[Path | None, typer.Option(help="Another scenario file.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep the store and the logs in this folder.")] = None,
) -> None:
    """Run the main job on a simulated fleet: no broker, no database, no hypervisor."""
    from virtpilot.pipeline import demo_run

    document = demo_run.run(seconds, headless=headless, quiet=json, speed=speed, scenario=scenario, folder=keep)
    if json:
        print_json(document)


@app.command()
def agent(config: ConfigFile = plain.FILES["agent"]) -> None:
    """Run the agent of this host."""
    plain.run("agent", config)


@app.command()
def controller(config: ConfigFile = CONTROLLER) -> None:
    """Run the controller of a cluster."""
    plain.run("controller", config)


@app.command()
def writer(config: ConfigFile = plain.FILES["writer"]) -> None:
    """Run a writer: bus to store."""
    plain.run("writer", config)


@app.command()
def fleet(config: ConfigFile = plain.FILES["fleet"]) -> None:
    """Run a simulated fleet whose agents speak to a real broker."""
    plain.run("fleet", config)


@app.command()
def replay(
    history: Annotated[
        str,
        typer.Option(help="A file store's folder, line protocol, or the URL of a VictoriaMetrics.", show_default=False),
    ],
    rules: Annotated[list[Path], typer.Option(help="Rule files and folders.", show_default=False)],
    against: Annotated[list[Path] | None, typer.Option(help="Another rule set, to compare.")] = None,
    mode: Annotated[Mode | None, typer.Option(help="In place of the rules' own mode.")] = None,
    start: Annotated[str, typer.Option("--from", help="From this time on: 14:03 or ISO 8601.")] = "",
    end: Annotated[str, typer.Option("--to", help="Up to this time.")] = "",
    cluster: Annotated[str, typer.Option(help="Which cluster, where the history holds several.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Play rules over recorded history: what they would have done, or what two rule sets would have done otherwise."""
    from virtpilot.pipeline import replay, replay_text
    from virtpilot.pipeline.history import Span

    quiet_logs()
    span = Span(_moment(start), _moment(end), cluster)
    document, sets = replay.run(history, rules, against or [], mode=mode, span=span)
    if json:
        print_json(document)
    else:
        typer.echo("\n".join(replay_text.lines(document, sets)))


@app.command()
def explain(
    subject: Annotated[str, typer.Argument(help="A host's or guest's name, or a guest's UUID.", show_default=False)],
    at: Annotated[str, typer.Option(help="When: 14:03 (today, the whole minute) or ISO 8601; now.")] = "",
    config: Annotated[Path, typer.Option(help="The controller's config: where its trail and rules are.")] = CONTROLLER,
    trail: Annotated[Path | None, typer.Option(help="In place of it: the controller's state folder.")] = None,
    rules: Annotated[list[Path] | None, typer.Option(help="In place of the config's rules.")] = None,
    history: Annotated[str, typer.Option(help="Look again at this history, as `replay` does.")] = "",
    lookback: Annotated[str, typer.Option(help="How much of the history.")] = "1h",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Tell why rules fired on a host or guest, why not, and which guard stopped them."""
    from virtpilot.pipeline import explain, explain_text
    from virtpilot.rules.language.units import duration_ns

    quiet_logs()
    now_ns = SystemClock().now_ns()
    try:
        at_ns, lookback_ns = moment_meant(at, now_ns) if at else now_ns, duration_ns(lookback)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    answer = explain.ask(
        subject, at_ns, config=config, trail=trail, rules=rules or [], history=history, lookback_ns=lookback_ns
    )
    if json:
        print_json(explain.document(answer))
    else:
        typer.echo("\n".join(explain_text.lines(answer)))


def _moment(text: str) -> int | None:
    try:
        return moment(text, SystemClock().now_ns()) if text else None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@app.command()
def keys(
    folder: Annotated[Path, typer.Argument(help="Where to; made if need be.")],
    name: Annotated[KeyName, typer.Option(help="Whose: the controller's, or an operator's.")] = KeyName.CONTROLLER,
) -> None:
    """Make the key pair with which a controller signs and agents verify, or an operator and all of them."""
    from virtpilot.actuators.command import generate

    private, public = generate(folder, name)
    readers = "every agent" if name is KeyName.CONTROLLER else "the controller and every agent"
    typer.echo(f"{private}: for the {name} alone\n{public}: for {readers}")


@config_app.command("check")
def config_check(
    file: Path,
    process: Annotated[str | None, typer.Option(help="agent, controller, writer or fleet; by the file's name.")] = None,
) -> None:
    """Check a config file, without touching the network; 2 with every mistake in it."""
    plain.check_config(file, _known(process or file.stem))


@config_app.command("sample")
def config_sample(process: str) -> None:
    """Print a config file for a process with every option, its default and its meaning."""
    from virtpilot.pipeline import settings

    typer.echo(settings.sample(plain.config_type(_known(process))), nl=False)


def _known(process: str) -> str:
    if process not in plain.CONFIGS:
        raise typer.BadParameter(f"{process!r} is no process: {', '.join(plain.CONFIGS)} (say --process)")
    return process
