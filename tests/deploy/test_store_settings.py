"""Retention and down-sampling: in step with the field table, taken by their checkers, tried on two real stores."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from deploy.stores.__main__ import files
from tests.conftest import MakeVictoriaMetrics
from tests.deploy.broker_site import DEPLOY
from tests.services import needs
from virtpilot.clock import SECOND, SystemClock
from virtpilot.fields import FIELDS, Type
from virtpilot.pipeline.store.influx import InfluxStore
from virtpilot.pipeline.store.options import StoreOptions

RULES = DEPLOY / "stores" / "vmalert-5m.yml"
STEP_S = 300


@pytest.mark.parametrize("name", files())
def test_files_are_in_step_with_the_field_table(name: str) -> None:
    """`python -m deploy.stores` writes them."""
    assert (DEPLOY / "stores" / name).read_text(encoding="utf-8") == files()[name]


def test_every_declared_field_is_kept_long_and_no_other() -> None:
    document = YAML(typ="safe").load(RULES.read_text())
    rules = [rule for group in document["groups"] for rule in group["rules"]]
    assert {rule["record"] for rule in rules} == {f"{measurement}_{name}" for measurement, name in FIELDS}
    assert len(rules) == len(FIELDS)
    for rule in rules:
        function, series = re.fullmatch(r"(\w+)\((\w+)\[5m\]\)", rule["expr"]).groups()  # type: ignore[union-attr]
        assert series == rule["record"]
        assert function == ("last_over_time" if re.search("_total$|_code$", series) else "avg_over_time")


def test_influxdb_template_has_buckets_with_retention_and_tasks_over_all_fields() -> None:
    found = list(YAML(typ="safe").load_all((DEPLOY / "stores" / "influxdb2.yml").read_text()))
    buckets = {one["metadata"]["name"]: one["spec"] for one in found if one["kind"] == "Bucket"}
    assert buckets["virtpilot"]["retentionRules"][0]["everySeconds"] == 30 * 24 * 3600
    assert buckets["virtpilot-5m"]["retentionRules"][0]["everySeconds"] == 5 * 365 * 24 * 3600
    assert StoreOptions().bucket in buckets
    tasks = [one["spec"]["query"] for one in found if one["kind"] == "Task"]
    assert len(tasks) == 2
    for query in tasks:
        assert re.findall(r'bucket: "([^"]+)"', query) == ["virtpilot", "virtpilot-5m"]
        (measurements,) = re.findall(r"_measurement =~ /\^\((.+)\)\$/", query)
        assert set(measurements.split("|")) == {measurement for measurement, _ in FIELDS}
    averaged = re.findall(r"_field !~ /(.+?)/\)", tasks[0])[0]
    for (_, name), field in FIELDS.items():
        assert bool(re.search(averaged, name)) == (field.type is Type.COUNTER or name.endswith("_code")), name


@pytest.mark.server
@pytest.mark.parametrize(
    "command", [["vmalert", "-dryRun", f"-rule={RULES}"], ["promtool", "check", "rules", str(RULES)]]
)
def test_rules_are_taken_by_their_own_checkers(command: list[str]) -> None:
    binary, *arguments = command
    done = subprocess.run([needs(binary), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_vmalert_fills_a_second_store_with_steps_of_five_minutes(
    make_victoriametrics: MakeVictoriaMetrics, tmp_path: Path
) -> None:
    """As after an outage: replayed over the time that came late."""
    raw, long = make_victoriametrics(), make_victoriametrics()
    begin_s = SystemClock().now_ns() // SECOND // STEP_S * STEP_S - 6 * STEP_S
    store = InfluxStore(StoreOptions(url=raw.url), SystemClock())
    lines = [
        b"host,cluster=c,host=h1 cpu_usage_ratio=%.1f,guests_skipped_total=%d %d"
        % (0.2 if second % 20 else 0.4, second, (begin_s + second) * SECOND)
        for second in range(0, 4 * STEP_S, 10)
    ]
    store.write("h1/b/1", b"\n".join(lines))
    store.close()
    raw.export("host_cpu_usage_ratio", begin_s, begin_s + 4 * STEP_S)
    wanted = [
        rule for rule in RULES.read_text().splitlines(keepends=True) if "host_cpu_usage" in rule or "skipped" in rule
    ]
    rules = tmp_path / "some.yml"
    rules.write_text("groups:\n  - name: host-5m\n    interval: 5m\n    rules:\n" + "".join(wanted))
    done = subprocess.run(
        [
            needs("vmalert"), f"-rule={rules}", f"-datasource.url={raw.url}", f"-remoteWrite.url={long.url}",
            f"-replay.timeFrom={_time(begin_s)}", f"-replay.timeTo={_time(begin_s + 4 * STEP_S)}",
            "-replay.rulesDelay=1s",
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for row in long.export('{host="h1"}', begin_s, begin_s + 5 * STEP_S).splitlines():
        series = json.loads(row)
        assert series["metric"]["cluster"] == "c"
        found[series["metric"]["__name__"]] = dict(zip(series["timestamps"], series["values"], strict=True))
    at_ms = (begin_s + 2 * STEP_S) * 1000
    assert found["host_cpu_usage_ratio"][at_ms] == pytest.approx(0.3, abs=0.02)
    assert found["host_guests_skipped_total"][at_ms] in (590, 600)


def _time(at_s: int) -> str:
    from virtpilot.pipeline.kept import moment_text

    return moment_text(at_s * SECOND)
