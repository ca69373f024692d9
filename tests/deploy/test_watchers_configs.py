"""The example configs of Alertmanager and Prometheus are taken by their own checkers, and by VictoriaMetrics."""

from __future__ import annotations

import subprocess
from typing import Final

import pytest
from ruamel.yaml import YAML

from tests.deploy.broker_site import DEPLOY
from tests.services import needs
from virtpilot.pipeline import settings
from virtpilot.pipeline.config import PROCESSES

CHECKS: Final = {
    "alertmanager": ["amtool", "check-config", "alertmanager.yml"],
    "prometheus": ["promtool", "check", "config", "prometheus.yml"],
    "victoriametrics, compose": [
        "victoria-metrics", "-promscrape.config.dryRun", "-promscrape.config.strictParse",
        "-promscrape.config=config/compose/scrape.yml",
    ],
    "victoriametrics, hosts": [
        "victoria-metrics", "-promscrape.config.dryRun", "-promscrape.config.strictParse",
        "-promscrape.config=prometheus.yml",
    ],
}  # fmt: skip


@pytest.mark.server
@pytest.mark.parametrize("name", CHECKS)
def test_its_own_checker_takes_it(name: str) -> None:
    binary, *arguments = CHECKS[name]
    command = [needs(binary), *arguments]
    ended = subprocess.run(command, cwd=DEPLOY, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.server
@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (["alertname=vm-cpu-starved", "severity=warning", "cluster=c", "kind=vm", "vm=u"], "oncall"),
        (["alertname=host-full", "severity=critical", "cluster=c", "kind=host", "host=h"], "oncall"),
        (["alertname=noted", "severity=info", "cluster=c"], "nobody"),
    ],
)
def test_alerts_find_their_receiver(labels: list[str], receiver: str) -> None:
    command = [needs("amtool"), "config", "routes", "test", "--config.file=alertmanager.yml", *labels]
    ended = subprocess.run(command, cwd=DEPLOY, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout.strip() == receiver, ended.stderr


def test_prometheus_asks_the_ports_of_the_example_configs() -> None:
    document = YAML(typ="safe").load(DEPLOY / "prometheus.yml")
    for job in document["scrape_configs"]:
        process = job["job_name"].removeprefix("virtpilot-")
        port = settings.load(DEPLOY / f"config/{process}.toml", PROCESSES[process]).exporter.port
        targets = [target for group in job["static_configs"] for target in group["targets"]]
        assert {target.rpartition(":")[2] for target in targets} == {str(port)}
