"""Write the stores' down-sampling files beside this one: `python -m deploy.stores`; a test keeps them in step.

Which fields there are, and which of them count up, comes from the field table. Averages for what goes up and down, the
last value for counters and codes: a rate over them is then as right as before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from virtpilot.fields import FIELDS, Field, Type

_FOLDER: Final = Path(__file__).resolve().parent
_MADE: Final = "# Written by `python -m deploy.stores` from the field table; docs/stores.md tells how to use it.\n"
_LAST: Final = r"_total$|_code$"

_BUCKETS: Final = """apiVersion: influxdata.com/v2alpha1
kind: Bucket
metadata: {name: virtpilot}
spec:
  description: What the writers store, as it was measured.
  retentionRules: [{type: expire, everySeconds: 2592000}]  # 30 days
---
apiVersion: influxdata.com/v2alpha1
kind: Bucket
metadata: {name: virtpilot-5m}
spec:
  description: The same in steps of five minutes.
  retentionRules: [{type: expire, everySeconds: 157680000}]  # 5 years
"""

_TASK: Final = """---
apiVersion: influxdata.com/v2alpha1
kind: Task
metadata: {{name: virtpilot-5m-{name}}}
spec:
  every: 5m
  offset: 1m
  # Two hours each time, in whole steps: what an outage brings late is taken in, and written again it is the same point.
  query: |
    import "date"
    from(bucket: "virtpilot")
      |> range(start: date.truncate(t: -2h, unit: 5m), stop: date.truncate(t: now(), unit: 5m))
      |> filter(fn: (r) => r._measurement =~ /^({measurements})$/)
      |> filter(fn: (r) => r._field {operator} /{last}/)
      |> aggregateWindow(every: 5m, fn: {function}, createEmpty: false)
      |> to(bucket: "virtpilot-5m")
"""


def files() -> dict[str, str]:
    """Return the files by name."""
    return {"vmalert-5m.yml": _vmalert(), "influxdb2.yml": _influxdb2()}


def _is_last(field: Field) -> bool:
    return field.type is Type.COUNTER or field.name.endswith("_code")


def _vmalert() -> str:
    """Return recording rules: the same names, for a second VictoriaMetrics that keeps them long."""
    lines = [_MADE + "groups:"]
    for measurement in sorted({field.measurement for field in FIELDS.values()}):
        lines += [f"  - name: {measurement}-5m", "    interval: 5m", "    rules:"]
        for field in FIELDS.values():
            if field.measurement == measurement:
                series = f"{measurement}_{field.name}"
                function = "last_over_time" if _is_last(field) else "avg_over_time"
                lines.append(f'      - {{record: {series}, expr: "{function}({series}[5m])"}}')
    return "\n".join(lines) + "\n"


def _influxdb2() -> str:
    """Return an InfluxDB 2 template: both buckets and the tasks between them."""
    measurements = "|".join(sorted({field.measurement for field in FIELDS.values()}))
    tasks = [
        _TASK.format(name=name, measurements=measurements, operator=operator, last=_LAST, function=function)
        for name, operator, function in (("averages", "!~", "mean"), ("counters", "=~", "last"))
    ]
    return _MADE + _BUCKETS + "".join(tasks)


def main() -> None:
    """Write them."""
    for name, text in files().items():
        (_FOLDER / name).write_text(text, encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main()
