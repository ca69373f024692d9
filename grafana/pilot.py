"""The Pilot dashboard: what virtpilot's own processes do, from their exporters."""

from __future__ import annotations

from typing import Final

from virtpilot.grafana.view import Board, Section, Source, Variable, graph, number, stack

_JOB: Final = '{job=~"$job"}'
_HERE: Final = {"source": Source.EXPORTERS}
_WHOLE: Final = {"source": Source.EXPORTERS, "decimals": 0}


def _in_range(counter: str) -> str:
    return f"sum(increase({counter}{_JOB}[$__range]))"


def _increase(counter: str, by: str = "") -> str:
    grouped = f"sum by ({by}) " if by else "sum"
    return f"{grouped}(increase({counter}{_JOB}[$__rate_interval]))"


def _rate(counter: str) -> str:
    return f"sum(rate({counter}{_JOB}[$__rate_interval]))"


_NOW: Final = Section(
    "Now, and over the time shown",
    (
        number("Rules", "Rules in force.", "none", f"max(virtpilot_rules_count{_JOB})", **_WHOLE),
        number(
            "Samples per second",
            "Samples evaluated.",
            "none",
            _rate("virtpilot_controller_samples_total"),
            **_WHOLE,
        ),
        number(
            "Commands",
            "Commands given in the time shown.",
            "none",
            _in_range("virtpilot_commands_total"),
            **_WHOLE,
        ),
        number(
            "Rule files refused",
            "Files with mistakes in the time shown; the last good ones stay in force.",
            "none",
            _in_range("virtpilot_rules_refused_total"),
            bad=1,
            **_WHOLE,
        ),
        number(
            "State not saved",
            "Saves that failed in the time shown: look at the controller's disk.",
            "none",
            _in_range("virtpilot_state_save_failures_total"),
            bad=1,
            **_WHOLE,
        ),
        number(
            "Lines put aside",
            "Lines that the store will never take, in the time shown: look at the writer's dead letters.",
            "none",
            _in_range("virtpilot_writer_dead_lines_total"),
            warn=1,
            **_WHOLE,
        ),
    ),
)

_DOING: Final = Section(
    "Signals, decisions, outcomes",
    (
        stack(
            "Signals",
            "Rules' conditions that changed state: pending, firing, clearing, inactive.",
            "none",
            (_increase("virtpilot_signals_total"), "changes of state"),
            width=8,
            **_HERE,
        ),
        stack(
            "Decisions",
            "What rules wanted: accepted, or refused and by which guard.",
            "none",
            (_increase("virtpilot_decisions_accepted_total"), "accepted"),
            (_increase("virtpilot_decisions_refused_total", "guard"), "refused: {{guard}}"),
            width=8,
            **_HERE,
        ),
        stack(
            "Outcomes",
            "What became of the commands: at the agents, and in their measured effect.",
            "none",
            (_increase("virtpilot_outcomes_total", "result"), "{{result}}"),
            width=8,
            **_HERE,
        ),
    ),
)


def _many(condition: str) -> str:
    """Return how many series are so; 0 where there is none."""
    return f"count({condition}) or vector(0)"


_GUARDS: Final = Section(
    "Guards",
    (
        number("Stopped", "1 after `virtpilot stop`.", "none", f"max(virtpilot_stopped_count{_JOB})", bad=1, **_WHOLE),
        number(
            "Wait for approval",
            "Actions that a person is asked about: `virtpilot approvals ls`.",
            "none",
            'sum(virtpilot_approvals_count{job=~"$job",state="pending"})',
            warn=1,
            **_WHOLE,
        ),
        number(
            "Breakers open",
            "Rules and hosts where it failed again and again, open or half open.",
            "none",
            _many(f"virtpilot_breaker_state_code{_JOB} > 0"),
            bad=1,
            **_WHOLE,
        ),
        number(
            "Budgets used up",
            "Budgets of rules, guests, hosts and the cluster without an action left.",
            "none",
            _many(f"virtpilot_budget_left_count{_JOB} < 1"),
            warn=1,
            **_WHOLE,
        ),
        number(
            "To and fro",
            "Guests, or knobs of theirs, that oscillate.",
            "none",
            f"max(virtpilot_oscillating_count{_JOB})",
            warn=1,
            **_WHOLE,
        ),
        number(
            "Others at work",
            "Guests left alone because somebody else has changed them.",
            "none",
            f"max(virtpilot_foreign_guests_count{_JOB})",
            **_WHOLE,
        ),
    ),
)

_STREAM: Final = Section(
    "Stream",
    (
        graph(
            "Messages per second",
            "Sent by the agents, handled by the controller, stored by the writers.",
            "mps",
            (_rate("virtpilot_spool_published_total"), "agents"),
            (_rate("virtpilot_controller_messages_total"), "controller"),
            (_rate("virtpilot_writer_messages_total"), "writers"),
            **_HERE,
        ),
        graph(
            "Spool",
            "Messages that each agent keeps until a writer has reported them stored: grows while the broker is away.",
            "none",
            (f"virtpilot_spool_messages_count{_JOB}", "{{instance}}"),
            decimals=0,
            **_HERE,
        ),
        graph(
            "Trouble on the way",
            "What was sent again, lost to a full spool, not readable, or not taken by the store at first.",
            "none",
            (_increase("virtpilot_spool_resent_total"), "sent again"),
            (_increase("virtpilot_spool_dropped_total"), "lost: spool full"),
            (_increase("virtpilot_controller_bad_lines_total"), "malformed lines"),
            (_increase("virtpilot_controller_bad_messages_total"), "unreadable messages"),
            (_increase("virtpilot_writer_retries_total"), "store attempts failed"),
            **_HERE,
        ),
        graph(
            "Trouble on the hosts",
            "Sources that could not be read, and commands that were not verified.",
            "none",
            (_increase("virtpilot_agent_failures_total", "instance"), "{{instance}} not read"),
            (_increase("virtpilot_agent_commands_refused_total", "instance"), "{{instance}} not verified"),
            **_HERE,
        ),
    ),
)

_PROCESSES: Final = Section(
    "Processes",
    (
        graph(
            "Memory",
            "Resident set.",
            "bytes",
            (f"process_resident_memory_bytes{_JOB}", "{{job}} {{instance}}"),
            **_HERE,
        ),
        graph(
            "CPU",
            "CPU seconds per second.",
            "percentunit",
            (f"rate(process_cpu_seconds_total{_JOB}[$__rate_interval])", "{{job}} {{instance}}"),
            **_HERE,
        ),
    ),
)

BOARD: Final = Board(
    uid="virtpilot-pilot",
    title="virtpilot: Pilot",
    meaning="What virtpilot's own processes do, from their exporters.",
    variables=(
        Variable(
            name="job",
            label="Job",
            query="label_values(virtpilot_build_info, job)",
            many=True,
            source=Source.EXPORTERS,
        ),
    ),
    sections=(_NOW, _DOING, _GUARDS, _STREAM, _PROCESSES),
)
