"""Fleet, writer and controller as processes on the broker with the shipped access list: the main job gets through."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import MakeVictoriaMetrics
from tests.deploy.broker_site import DeployedMosquitto
from tests.services import free_port, http, until
from virtpilot.actuators.command import generate

pytestmark = [pytest.mark.server, pytest.mark.slow]

SCENARIO: Final = """
name = "small"
[[hosts]]
name = "host-1"
cpus = 2
memory_mib = 16384
[[hosts]]
name = "host-2"
cpus = 4
memory_mib = 16384
[[guests]]
name = "web"
host = "host-1"
vcpus = 2
memory_mib = 256
tags = { tier = "web" }
cpu_cores = 2.0
dirty_mib_s = 5.0
[[guests]]
name = "batch"
host = "host-1"
vcpus = 2
memory_mib = 256
tags = { tier = "batch" }
cpu_cores = 2.0
"""
RULE: Final = """
virtpilot: 1
rules:
  - name: starved
    about: A guest waits for a physical CPU.
    on: vm
    where: tags.tier == "web"
    when: cpu_steal_ratio > 10%
    for: 1s
    clear: cpu_steal_ratio < 4%
    clear_for: 1s
    priority: 70
    mode: act
    cooldown: 1m
    remedies:
      - migrate: {to: best}
        expect: cpu_steal_ratio < 5% within 20s
"""
# Process → its user at the broker.
USER_OF: Final = {"fleet": "fleet", "writer": "writer", "controller": "controller", "agent": "host-9"}


class Site:
    """Config files and processes in one folder."""

    def __init__(self, folder: Path, broker: DeployedMosquitto, store_url: str) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in USER_OF}
        self.store_url = store_url
        self._broker = broker
        generate(folder / "keys")
        (folder / "rules").mkdir()
        (folder / "rules/starved.yaml").write_text(RULE)
        (folder / "scenario.toml").write_text(SCENARIO)
        keys = folder / "keys"
        self._own = {
            "fleet": f'scenario = "{folder}/scenario.toml"\n[timing]\ntick_s = 0.5\n[spool]\nresend_after_s = 5.0\n'
            f'[commands]\npublic_key_files = ["{keys}/controller.pub"]\n',
            "writer": f'[store]\nurl = "{store_url}"\nhold_s = 1.0\n',
            "controller": f'[rules]\npaths = ["{folder}/rules"]\n[guards]\nwarm_up_s = 1.0\nguest_cooldown_s = 1.0\n'
            f'[commands]\nprivate_key_file = "{keys}/controller.key"\n',
            "agent": 'host = "host-9"\n[timing]\ntick_s = 0.5\n[hypervisor]\nuri = "test:///default"\n'
            f'[commands]\npublic_key_files = ["{keys}/controller.pub"]\n',
        }

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Run a process of ours, over TLS, and end it in order."""
        config = self.folder / f"{name}.toml"
        config.write_text(self._config(name))
        dies_with_us = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        command = [*dies_with_us, sys.executable, "-m", "virtpilot.pipeline", name, "--config", str(config)]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                status = process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
        assert status == 0, self.log(name)

    def _config(self, name: str) -> str:
        options = self._broker.options(USER_OF[name], tls=True)
        return (
            f'cluster = "c1"\nstate_folder = "{self.folder}/{name}"\n{self._own[name]}'
            f'[bus]\nhost = "{options.host}"\nport = {options.port}\ntls = true\nca_file = "{options.ca_file}"\n'
            f'username = "{options.username}"\npassword_file = "{options.password_file}"\nreconnect_max_s = 1.0\n'
            f"[exporter]\nport = {self.ports[name]}\n"
        )

    def log(self, name: str) -> str:
        """Return what a process said."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def metric(self, name: str, metric: str) -> float:
        """Return a process's counter, 0 where it is not told yet."""
        with suppress(OSError):
            for line in http(f"http://127.0.0.1:{self.ports[name]}/metrics").decode().splitlines():
                if line.startswith((f"{metric} ", f"{metric}{{")):
                    return float(line.rpartition(" ")[2])
        return 0.0

    def outcome(self, result: str) -> bool:
        """Return whether the controller has recorded an outcome of this kind."""
        path = self.folder / "controller/records.jsonl"
        return path.exists() and f'"result":"{result}"' in path.read_text()


def wait_for(site: Site, what: str, condition: Callable[[], object], within_s: float = 90.0) -> None:
    """Wait, or fail with the end of each log."""
    if not until(condition, within_s, every_s=0.2):
        logs = "\n".join(f"--- {name}\n{site.log(name)[-1500:]}" for name in site.ports)
        pytest.fail(f"{what} did not come within {within_s:g} s\n{logs}")


@pytest.fixture
def site(tmp_path: Path, make_victoriametrics: MakeVictoriaMetrics) -> Iterator[Site]:
    """Broker and store, and what is needed to start our processes on them."""
    store = make_victoriametrics()
    broker = DeployedMosquitto(tmp_path / "broker", "mosquitto.conf", list(USER_OF.values()))
    broker.start()
    yield Site(tmp_path, broker, store.url)
    broker.stop()


def hosts_of(site: Site, guest: str) -> set[str]:
    """Return the hosts on which the store has seen a guest."""
    http(f"{site.store_url}/internal/force_flush")
    query = {"query": f'last_over_time(vm_state_code{{name="{guest}"}}[5m])'}
    answer = json.loads(http(f"{site.store_url}/api/v1/query", query))
    return {series["metric"]["host"] for series in answer["data"]["result"]}


def assert_nobody_was_refused(site: Site) -> None:
    for name in site.ports:
        assert "ot authorized" not in site.log(name)
        assert "refuses the subscription" not in site.log(name)


def test_a_starved_guest_of_the_simulated_fleet_is_moved_and_measured(site: Site) -> None:
    """Samples, statuses, signals, a signed command and its outcomes all pass the access list, over TLS."""
    with ExitStack() as stack:
        for name in ("writer", "controller", "fleet"):
            stack.enter_context(site.running(name))
        wait_for(site, "a message in the store", lambda: site.metric("writer", "virtpilot_writer_messages_total"))
        wait_for(site, "the outcome of a migration", lambda: site.outcome("done"))
        wait_for(site, "its measured effect", lambda: site.outcome("effective"))
        wait_for(site, "reports", lambda: site.metric("writer", "virtpilot_writer_reported_total") >= 10)
    assert hosts_of(site, "web") == {"host-1", "host-2"}
    assert_nobody_was_refused(site)


def test_an_agent_is_the_host_that_its_user_name_says(site: Site) -> None:
    """The real agent, on libvirt's own test driver, measures, and hears what is stored of its samples."""
    pytest.importorskip("libvirt", reason="the extra libvirt is not installed")
    with site.running("writer"), site.running("agent"):
        wait_for(site, "reports", lambda: site.metric("writer", "virtpilot_writer_reported_total") >= 3)
        published = site.metric("agent", "virtpilot_spool_published_total")
        wait_for(
            site, "a trimmed spool", lambda: 0 < site.metric("agent", "virtpilot_spool_messages_count") < published
        )
    assert hosts_of(site, "test") == {"host-9"}
    assert_nobody_was_refused(site)
