"""Fixtures of every test: real servers, one of each for the session, or one of its own for a test that kills it.

And the session's rules: what is fast runs first, nothing is skipped in CI for want of a server, no process is left.
"""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final, Protocol, TypeVar

import pytest
import structlog

from tests.services import Alertmanager, Mosquitto, Prometheus, Server, VictoriaMetrics, until
from tests.thoroughness import THOROUGH

AnyServer = TypeVar("AnyServer", bound=Server)

_SERVER_FIXTURES: Final = frozenset(
    {"mosquitto", "victoriametrics", "alertmanager", "prometheus"}
    | {"make_mosquitto", "make_victoriametrics", "make_alertmanager"}
)
# In the environment of whatever this session starts, so that it is known again, whoever its parent is by now.
_MARK: Final = "VIRTPILOT_TEST_SESSION"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Give the session a mark of its own, and Hypothesis a seed that can be given again.

    A worker has its session's mark from its environment: what it leaves behind the session finds.
    """
    if not _is_worker(config):
        os.environ[_MARK] = f"{os.getpid()}-{secrets.token_hex(8)}"
    if config.getoption("hypothesis_seed", None) is None:
        config.option.hypothesis_seed = str(secrets.randbelow(2**32))


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")  # pytest-xdist's word for it


def pytest_report_header(config: pytest.Config) -> str:
    """Print the seed."""
    return f"hypothesis seed: {config.option.hypothesis_seed} (--hypothesis-seed={config.option.hypothesis_seed})"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Read no file for the lab's tests that has none: to import all is half a minute's work, for each worker anew."""
    asks_for_labs = str(config.getoption("markexpr")).split()[:1] == ["lab"]
    has_tests = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if asks_for_labs and has_tests and "mark.lab" not in collection_path.read_text() else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what uses a server's fixture, leave out long forms, put the fast first, then slow, servers', the lab's."""
    if not THOROUGH:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    for item in items:
        if not _SERVER_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.server)
    items.sort(key=_turn if _is_worker(config) else _stage)


def _stage(item: pytest.Item) -> int:
    own = {mark.name for mark in item.iter_markers()}
    return 4 * ("lab" in own) + 2 * ("server" in own) + ("slow" in own)


def _turn(item: pytest.Item) -> int:
    """Return when one of several workers begins a test that needs no lab: what measures how soon something is, first.

    Nothing has come up beside it by then. Then what takes long, so that no worker is left with it when others end.
    """
    own = {mark.name for mark in item.iter_markers()}
    return _stage(item) if "lab" in own else 0 if "prompt" in own else 1 if "slow" in own else 2


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail under CI=true what a server or the lab should have shown and did not, however it was skipped."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail") and _stage(item) > 1:
        report.outcome = "failed"
        report.longrepr = f"skipped, and CI must run every test: {report.longrepr}"
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session where a process that it started is left, now that all fixtures and workers have ended."""
    if _is_worker(session.config) or until(lambda: not _left(), 5.0, 0.2):
        return
    for pid, command in _left().items():
        session.config.get_terminal_writer().line(f"\nleft behind: process {pid}: {command}", red=True)
    session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _left() -> dict[int, str]:
    """Return the processes with this session's mark, but for this one, as it began without."""
    mark = f"{_MARK}={os.environ[_MARK]}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
        except OSError:
            continue  # it has ended meanwhile, or is not ours to look into
    return found


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """Undo what a command run inside a test does to the logs: the standard error that it had is gone afterwards."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


class MakeMosquitto(Protocol):
    """Starts a broker that lives as long as the test."""

    def __call__(self, persistence: bool = False, extra: str = "") -> Mosquitto:
        """Return it, started."""


class MakeVictoriaMetrics(Protocol):
    """Starts a store that lives as long as the test."""

    def __call__(self) -> VictoriaMetrics:
        """Return it, started."""


class MakeAlertmanager(Protocol):
    """Starts an Alertmanager that lives as long as the test."""

    def __call__(self, config: str | None = None) -> Alertmanager:
        """Return it, started."""


class _Nursery:
    """Starts servers in folders of their own and stops all of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._servers: list[Server] = []

    def folder(self) -> Path:
        return self._folder / f"server-{next(self._numbers)}"

    def started(self, server: AnyServer) -> AnyServer:
        self._servers.append(server)
        server.start()
        return server

    def stop(self) -> None:
        for server in reversed(self._servers):
            server.stop()


@pytest.fixture(scope="session")
def session_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Nursery]:
    """What the session's servers live in."""
    nursery = _Nursery(tmp_path_factory.mktemp("session-servers"))
    yield nursery
    nursery.stop()


@pytest.fixture
def own_servers(tmp_path: Path) -> Iterator[_Nursery]:
    """What one test's own servers live in."""
    nursery = _Nursery(tmp_path / "servers")
    yield nursery
    nursery.stop()


@pytest.fixture(scope="session")
def mosquitto(session_servers: _Nursery) -> Mosquitto:
    """The session's broker: do not stop it, use a cluster name or topics of your own."""
    return session_servers.started(Mosquitto(session_servers.folder()))


@pytest.fixture(scope="session")
def victoriametrics(session_servers: _Nursery) -> VictoriaMetrics:
    """The session's store: do not stop it, use a cluster tag of your own."""
    return session_servers.started(VictoriaMetrics(session_servers.folder()))


@pytest.fixture(scope="session")
def alertmanager(session_servers: _Nursery) -> Alertmanager:
    """The session's Alertmanager: do not stop it, use labels of your own."""
    return session_servers.started(Alertmanager(session_servers.folder()))


@pytest.fixture(scope="session")
def prometheus(session_servers: _Nursery) -> Prometheus:
    """The session's Prometheus, which scrapes nothing by itself."""
    return session_servers.started(Prometheus(session_servers.folder()))


@pytest.fixture
def make_mosquitto(own_servers: _Nursery) -> MakeMosquitto:
    """A factory of brokers that the test may kill and start again."""

    def make(persistence: bool = False, extra: str = "") -> Mosquitto:
        return own_servers.started(Mosquitto(own_servers.folder(), persistence, extra))

    return make


@pytest.fixture
def make_victoriametrics(own_servers: _Nursery) -> MakeVictoriaMetrics:
    """A factory of stores that the test may kill and start again."""

    def make() -> VictoriaMetrics:
        return own_servers.started(VictoriaMetrics(own_servers.folder()))

    return make


@pytest.fixture
def make_alertmanager(own_servers: _Nursery) -> MakeAlertmanager:
    """A factory of Alertmanagers that the test may kill and start again."""

    def make(config: str | None = None) -> Alertmanager:
        folder = own_servers.folder()
        return own_servers.started(Alertmanager(folder) if config is None else Alertmanager(folder, config))

    return make
