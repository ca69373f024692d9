"""Fixtures of every test: real servers, one of each for the session, or one of its own for a test that kills it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from tests.services import Alertmanager, Mosquitto, Prometheus, Server, VictoriaMetrics

AnyServer = TypeVar("AnyServer", bound=Server)


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
