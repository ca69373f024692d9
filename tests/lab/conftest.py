"""The fixtures of the tests about leases on real hosts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy import lab as lab_module
from tests.lab.lab_process import need_a_lab
from tests.lab.leasing import HOSTS, PLANS, Leasing


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest) -> Iterator[Leasing]:
    """A lab of the module's name."""
    need_a_lab()
    name = request.module.NAME
    with lab_module.bring_up(name, plans=PLANS) as lab:
        site = Leasing(lab)
        yield site
        site.close()
    assert lab_module.leftovers(name) == []


@pytest.fixture
def agents(site: Leasing) -> Iterator[None]:
    """Each test begins without agents and with nothing leased, and ends so."""
    yield
    for host in HOSTS:
        if host in site.agents and site.agents[host].poll() is None:
            site.kill(host)
    site.agents.clear()
