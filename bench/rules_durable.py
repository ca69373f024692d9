"""Threshold rules over many guests: against durable-rules, and how many evaluations a second one core makes.

durable-rules runs in its best mode: events without sids, in batches, given ready dictionaries of only the fields that
rules name (`of_40_fields` tells how it fares with all that an agent's sample holds, which is what our lines hold). One
sample in a thousand crosses a threshold; the rules have neither `for` nor `clear`.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.measure import Figure, figure, interleaved, ratios
from virtpilot.fields import names
from virtpilot.lineblocks import LineReader
from virtpilot.lineprotocol import encode_lines
from virtpilot.model import Kind, Sample
from virtpilot.rules.language import RuleSet, load
from virtpilot.rules.signals.evaluator import Evaluator
from virtpilot.rules.signals.intake import Entries

FIELDS: Final = (
    "cpu_time_seconds_total", "cpu_user_seconds_total", "cpu_system_seconds_total", "memory_balloon_bytes",
    "memory_max_bytes", "memory_usable_bytes", "memory_unused_bytes", "memory_available_bytes", "memory_rss_bytes",
    "major_faults_total",
)  # fmt: skip
# An agent's sample of a guest has these as well.
_OTHERS: Final = tuple(name for name in names("vm") if name not in FIELDS)[:30]
_CALM: Final = 1000.0
_OTHER_VALUES: Final = {name: 0.5 + place for place, name in enumerate(_OTHERS)}
_CROSSING: Final = 1e-3
_GUESTS: Final = 1000
_RULES: Final = 100
_A_MESSAGE: Final = 50
# As the controller does with messages that wait.
_TOGETHER: Final = 4
_ROUNDS: Final = 10
_START_NS: Final = 1_700_000_000_000_000_000
_TICK_NS: Final = 10_000_000_000
_DURABLE: Final = "durable-rules 2.0.28 (events, no sids, batches of 1,000 ready dictionaries of the 10 fields named)"


def measure(runs: int) -> dict[str, Figure]:
    """Measure CPU time a sample of both, and evaluations a second."""
    rng = np.random.default_rng(1)
    rounds = [_values(rng, _GUESTS) for _ in range(_ROUNDS)]
    parts = {"durable": _durable(rounds, {}), "of_40_fields": _durable(rounds, _OTHER_VALUES)}
    took = interleaved(runs, **parts, whole=_whole(rounds), columns=_columns(rounds))
    per_s = {f"{name}_samples_per_s": 1 / median(each) for name, each in took.items()}
    many = interleaved(runs, many=_columns([_values(rng, 10_000) for _ in range(3)], rules=1000))["many"]
    return {
        "rules_vs_durable": figure(
            ratios(took["durable"], took["whole"]), "x", f"{_DURABLE}; ours parses lines", at_least=4, measured=per_s
        ),
        "eval_vs_durable": figure(
            ratios(took["durable"], took["columns"]), "x", f"{_DURABLE}; ours has columns", at_least=50, measured=per_s
        ),
        "rule_evals_per_s": figure(
            [1000 / each for each in many],
            "evaluations/s",
            "1,000 threshold rules x 10,000 guests on one core, parsing excluded",
            at_least=100e6,
        ),
    }


def _values(rng: np.random.Generator, guests: int) -> NDArray[np.float64]:
    """Return a number for each field and guest: calm, but for a few that cross some rule's threshold."""
    values = np.round(rng.random((len(FIELDS), guests)) * _CALM, 3)
    for guest in np.flatnonzero(rng.random(guests) < _CROSSING):
        rule = int(rng.integers(len(FIELDS)))
        values[rule % len(FIELDS), guest] = _CALM + rule + 0.5
    return values


def _ruleset(rules: int) -> RuleSet:
    lines = [
        f"  - {{name: r{number}, on: vm, when: {FIELDS[number % len(FIELDS)]} > {_CALM + number:g}}}"
        for number in range(rules)
    ]
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for part in range(0, rules, 500):
            file = Path(folder) / f"{part}.yaml"
            file.write_text("virtpilot: 1\nrules:\n" + "\n".join(lines[part : part + 500]) + "\n")
            files.append(file)
        return load(files)


def _samples(values: NDArray[np.float64], time_ns: int) -> list[Sample]:
    return [
        Sample(
            "vm",
            {"cluster": "bench", "host": f"h{guest // _A_MESSAGE}", "vm": f"g{guest}", "name": f"web-{guest}"},
            {**dict(zip(FIELDS, column, strict=True)), **_OTHER_VALUES},
            time_ns,
        )
        for guest, column in enumerate(values.T.tolist())
    ]


def _whole(rounds: list[NDArray[np.float64]]) -> Callable[[], float]:
    """Return what measures ours from the lines on: a message a host, parsed and fed four at a time, as a backlog is."""
    evaluator = Evaluator(_ruleset(_RULES))
    reader = LineReader({"vm": frozenset(FIELDS)})
    at_ns = _START_NS

    def run() -> float:
        nonlocal at_ns
        messages = []
        for values in rounds:
            at_ns += _TICK_NS
            samples = _samples(values, at_ns)
            messages += [encode_lines(samples[at : at + _A_MESSAGE]) for at in range(0, len(samples), _A_MESSAGE)]
        began = thread_time()
        for at in range(0, len(messages), _TOGETHER):
            evaluator.feed_messages([(reader.read(payload), "m") for payload in messages[at : at + _TOGETHER]])
        return (thread_time() - began) / (len(rounds) * _GUESTS)

    return run


def _columns(rounds: list[NDArray[np.float64]], rules: int = _RULES) -> Callable[[], float]:
    """Return what measures ours from the columns on: CPU time a sample of all its rules."""
    evaluator = Evaluator(_ruleset(rules))
    table, guests = evaluator.world.tables[Kind.VM], rounds[0].shape[1]
    evaluator.feed(_samples(rounds[0], _START_NS), "m")
    rows = np.arange(guests, dtype=np.int64)
    order = [FIELDS.index(name) for name in table.fields]
    at_ns = _START_NS

    def run() -> float:
        nonlocal at_ns
        began = thread_time()
        for values in rounds:
            at_ns += _TICK_NS
            table.values[:, :guests] = values[order]
            table.time[:guests] = at_ns
            times, patience = np.full(guests, at_ns), np.full(guests, 3 * _TICK_NS)
            evaluator.evaluate({Kind.VM: Entries(rows, times, patience, rows.tolist())})
        return (thread_time() - began) / float(len(rounds) * guests)

    return run


def _durable(rounds: list[NDArray[np.float64]], others: dict[str, float]) -> Callable[[], float]:
    """Return what measures durable-rules, given dictionaries that have `others` too."""
    from durable.engine import MessageNotHandledException
    from durable.lang import m, post_batch, ruleset, when_all

    fired: list[Any] = []
    with ruleset(name := f"bench{random.random()}"):  # noqa: S311 - a name, no secret
        for number in range(_RULES):
            condition = getattr(m, FIELDS[number % len(FIELDS)]) > _CALM + number
            when_all(condition)(lambda match: fired.append(match))  # noqa: PLW0108 - it reads a function's code
    batches = [
        [
            {"guest": guest, **dict(zip(FIELDS, column, strict=True)), **others}
            for guest, column in enumerate(values.T.tolist())
        ]
        for values in rounds
    ]

    def run() -> float:
        fired.clear()
        given = [[dict(one) for one in batch] for batch in batches]
        began = thread_time()
        for batch in given:
            with contextlib.suppress(MessageNotHandledException):
                post_batch(name, batch)
        return (thread_time() - began) / (len(rounds) * _GUESTS)

    return run
