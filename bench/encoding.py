"""Encoding samples as line protocol, against influxdb-client's `Point`."""

from __future__ import annotations

from statistics import median
from time import process_time
from typing import Any, Final

from influxdb_client.client.write.point import Point

from bench.material import messages
from bench.measure import Figure, figure, interleaved, ratios
from virtpilot.lineprotocol import encode_lines
from virtpilot.model import Sample

_ROUNDS: Final = 20


def measure(runs: int) -> dict[str, Figure]:
    """Measure CPU time a sample."""
    (samples,) = messages(1)
    points = [_point(sample) for sample in samples]

    def ours() -> float:
        began = process_time()
        for _ in range(_ROUNDS):
            encode_lines(samples)
        return (process_time() - began) / _ROUNDS / len(samples)

    def yardstick() -> float:
        began = process_time()
        for _ in range(_ROUNDS // 4):
            for point in points:
                point.to_line_protocol()
        return (process_time() - began) / (_ROUNDS // 4) / len(points)

    took = interleaved(runs, ours=ours, yardstick=yardstick)
    return {
        "encode_vs_point": figure(
            ratios(took["yardstick"], took["ours"]),
            "x",
            "Point.to_line_protocol of influxdb-client, a sample of 40 fields and 5 tags",
            at_least=8,
            measured={f"{name}_us_per_sample": median(values) * 1e6 for name, values in took.items()},
        )
    }


def _point(sample: Sample) -> Any:
    make: Any = Point  # without annotations
    point = make(sample.measurement)
    for key, value in sample.tags.items():
        point.tag(key, value)
    for name, number in sample.fields.items():
        point.field(name, number)
    return point.time(sample.time_ns)
