"""Reading six wanted fields of forty from messages' lines, against the C parser of line_protocol_parser."""

from __future__ import annotations

from statistics import median
from time import process_time
from typing import Final

from line_protocol_parser import parse_line

from bench.material import WANTED, messages
from bench.measure import Figure, figure, interleaved, ratios
from virtpilot.lineprotocol import encode_lines, parse_wanted
from virtpilot.model import Sample

_MESSAGES: Final = 20
_ROUNDS: Final = 3


def measure(runs: int) -> dict[str, Figure]:
    """Measure CPU time a line: message after message, each one's samples let go before the next."""
    payloads = [encode_lines(samples) for samples in messages(_MESSAGES)]
    lines = sum(payload.count(b"\n") for payload in payloads) * _ROUNDS
    if _by_yardstick(payloads[0]) != parse_wanted(payloads[0], WANTED).samples:
        raise AssertionError("both must find the same")

    def ours() -> float:
        began = process_time()
        for _ in range(_ROUNDS):
            for payload in payloads:
                parse_wanted(payload, WANTED)
        return (process_time() - began) / lines

    def yardstick() -> float:
        began = process_time()
        for _ in range(_ROUNDS):
            for payload in payloads:
                _by_yardstick(payload)
        return (process_time() - began) / lines

    took = interleaved(runs, ours=ours, yardstick=yardstick)
    measured = {f"{name}_us_per_line": median(values) * 1e6 for name, values in took.items()}
    return {
        "parse_vs_c_parser": figure(
            ratios(took["yardstick"], took["ours"]),
            "x",
            "the same samples by way of line_protocol_parser's parse_line (C), 6 wanted fields of 40",
            at_least=4,
            measured=measured,
        ),
        "parse_lines_per_s": figure(
            [1 / seconds for seconds in took["ours"]],
            "lines/s",
            "150,000 lines of 40 fields a second on one core",
            at_least=150_000,
            measured=measured,
        ),
    }


def _by_yardstick(payload: bytes) -> list[Sample]:
    """Return what `parse_wanted` returns, as one would write it with the other parser."""
    samples = []
    for line in payload.decode().splitlines():
        parsed = parse_line(line)
        wanted = WANTED.get(parsed["measurement"])
        if wanted is not None:
            fields = parsed["fields"]
            found = {name: fields[name] for name in wanted if name in fields}
            samples.append(Sample(parsed["measurement"], parsed["tags"], found, parsed["time"]))
    return samples
