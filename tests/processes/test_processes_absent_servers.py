"""A server that is absent or hangs: everything else goes on, and nothing is lost by it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import MakeVictoriaMetrics
from tests.processes.counting import Listener, each_once, in_file_store, in_victoriametrics
from tests.processes.running import Site
from tests.services import Mosquitto, until

pytestmark = pytest.mark.server


def test_without_broker_and_store_an_agent_measures_and_spools_and_nothing_is_lost(
    site: Site, broker: Mosquitto, make_victoriametrics: MakeVictoriaMetrics
) -> None:
    """Writer and agent start before both; the broker comes first. The listener's session was made on an earlier day."""
    store = make_victoriametrics()
    store.stop()
    listener = Listener(broker.port, site.cluster)
    broker.stop()
    writer = site.process("writer", store={"url": store.url, "hold_s": 0.2}).start().up()
    agent = site.agent().start().up()
    agent.reaches("virtpilot_agent_ticks_total", 15)
    assert agent.number("virtpilot_spool_messages_count") >= 15
    assert agent.number("virtpilot_spool_published_total") == 0
    assert agent.health() == (503, {"bus": False, "spool": True})
    assert writer.health()[1]["bus"] is False

    broker.start()
    writer.reaches("virtpilot_writer_retries_total", 2)
    assert writer.health() == (503, {"bus": True, "store": False})
    assert writer.number("virtpilot_writer_messages_total") == 0
    assert until(lambda: agent.health() == (200, {"bus": True, "spool": True}))

    store.start()
    writer.reaches("virtpilot_writer_messages_total", 20)
    assert until(lambda: writer.health() == (200, {"bus": True, "store": True}))
    agent.terminate()
    site.flush()
    writer.terminate()
    listener.listen()
    each_once(listener.sequences())
    assert len(listener.heard) > 20
    in_victoriametrics(store, "h1", listener.heard.values())
    listener.close()


@contextmanager
def black_hole() -> Iterator[tuple[int, threading.Event]]:
    """A port that takes connections and never answers; the event tells that somebody has come."""
    came, held = threading.Event(), []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return
                came.set()

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield server.getsockname()[1], came
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in held:
        connection.close()


def test_a_writer_whose_store_hangs_ends_in_time_and_loses_nothing(site: Site) -> None:
    with black_hole() as (port, came):
        options = {"url": f"http://127.0.0.1:{port}", "timeout_s": 60.0}
        hung = site.process("writer", store=options).start().up()
        agent = site.agent().start().up()
        assert came.wait(20), hung.output()
        hung.terminate()
        assert "cut off" in hung.output()
    writer = site.file_writer().start().up()
    agent.reaches("virtpilot_agent_ticks_total", 10)
    agent.terminate()
    site.flush()
    writer.terminate()
    each_once(in_file_store(site.stored))


def test_an_agent_whose_libvirt_hangs_measures_its_host_and_ends_in_time(site: Site) -> None:
    with black_hole() as (port, came):
        hypervisor = {"uri": f"qemu+tcp://127.0.0.1:{port}/system", "deadline_s": 1.0}
        agent = site.agent(hypervisor=hypervisor).start().up()
        assert came.wait(20), agent.output()
        agent.reaches("virtpilot_agent_samples_total", 1)
        agent.terminate()


def test_a_controller_without_a_broker_ends_in_time(site: Site, broker: Mosquitto) -> None:
    broker.stop()
    controller = site.usual("controller").start().up()
    assert controller.health() == (503, {"bus": False, "rules": True})
    controller.terminate()
