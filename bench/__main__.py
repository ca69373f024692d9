"""`python -m bench [KEY…]`: measure all figures, or those named, and print one JSON document on standard output."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Final

import msgspec

from bench.measure import MIN_RUNS, Figure, Unmeasured, say

# Where each figure is measured; a module measures its figures together.
BENCHES: Final[dict[str, str]] = {
    "writer_vs_raw_http": "bench.writing",
    "writer_vs_points": "bench.writing",
    "encode_vs_point": "bench.encoding",
    "parse_vs_c_parser": "bench.parsing",
    "parse_lines_per_s": "bench.parsing",
    "collect_us_per_guest": "bench.collecting",
    "collect_vs_bare": "bench.collecting_lab",
    "agent_rss_mb": "bench.memory",
    "rules_vs_durable": "bench.rules_durable",
    "eval_vs_durable": "bench.rules_durable",
    "rule_evals_per_s": "bench.rules_durable",
    "fleet10k_core_ratio": "bench.rules_fleet",
    "fleet10k_rss_mb": "bench.rules_fleet",
    "sample_to_decision_p99_ms": "bench.rules_fleet",
    "alert_vs_prometheus": "bench.rules_alerting",
    "command_ms": "bench.guarding",
    "command_to_effect_p99_ms": "bench.acting",
    "commands_per_s": "bench.acting",
}


def measured(keys: list[str], runs: int) -> dict[str, Figure]:
    """Return the figures asked for, but for those that this machine cannot give."""
    found: dict[str, Figure] = {}
    for module in dict.fromkeys(BENCHES[key] for key in BENCHES if key in keys):
        say(f"{module} …")
        try:
            found |= importlib.import_module(module).measure(runs)
        except Unmeasured as error:
            say(f"{module}: left out: {error}")
    for key, figure in found.items():
        asked = f"at least {figure.at_least:g}" if figure.at_least is not None else f"at most {figure.at_most:g}"
        say(f"{key}: {figure.value:g} {figure.unit}, {asked}: {'fine' if figure.ok else 'MISSED'}")
    return {key: found[key] for key in keys if key in found}


def main() -> None:
    """Print the document; what a figure lacks is told in it and on standard error, and is no failure of the run.

    Exit status 1: a figure that was named is left out.
    """
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("keys", nargs="*", metavar="KEY", help=f"by default all of: {', '.join(BENCHES)}")
    parser.add_argument("--runs", type=int, default=MIN_RUNS, help=f"runs a figure, {MIN_RUNS} at least")
    asked = parser.parse_args()
    unknown = sorted(set(asked.keys) - BENCHES.keys())
    if unknown or asked.runs < MIN_RUNS:
        parser.error(f"no such figure: {', '.join(unknown)}" if unknown else f"{MIN_RUNS} runs at least")
    document = measured(asked.keys or list(BENCHES), asked.runs)
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")
    sys.exit(int(not document.keys() >= set(asked.keys)))


if __name__ == "__main__":
    main()
