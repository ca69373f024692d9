"""The queue over real HTTP: who may ask, what is refused, and what a backup's script sees."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services import free_port, until
from virtpilot.clock import SECOND
from virtpilot.errors import ConfigError
from virtpilot.pipeline.operations.announced import Announcement, located
from virtpilot.pipeline.operations.desk import FORESEEN, Desk, SchedulingOptions
from virtpilot.pipeline.operations.page import OperationsPage, PageOptions

TOKEN = "0123456789abcdef0123"  # noqa: S105 - of this test alone
NOW = 1_000_000 * SECOND
Ask = Callable[..., tuple[int, Any]]


class House:
    """Two guests on one host."""

    def host_of(self, guest: str) -> tuple[str, str] | None:
        return {"web-1": ("uuid-1", "host-1"), "db-1": ("uuid-2", "host-1")}.get(guest)

    def host(self, name: str) -> str | None:
        return name if name == "host-1" else None


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    return path


@pytest.fixture
def desk() -> Desk:
    return Desk(SchedulingOptions(), {"out": 1, "in": 1, "cluster": 2})


@pytest.fixture
def page(desk: Desk, token_file: Path) -> Iterator[OperationsPage]:
    """A page whose controller comes by all the time."""
    options = PageOptions(port=free_port(), token_file=str(token_file))
    made = OperationsPage(options, desk, lambda work: located(work, House()))
    stop = threading.Event()

    def controller() -> None:
        while not stop.wait(0.005):
            while (asked := made.next()) is not None:
                asked.tell(made.answer(asked.request, NOW))
            desk.turn([], [], NOW)

    thread = threading.Thread(target=controller)
    thread.start()
    yield made
    stop.set()
    thread.join()
    made.close()


@pytest.fixture
def ask(page: OperationsPage) -> Ask:
    def asked(method: str, path: str, body: object = None, token: str = TOKEN) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=10)
        with contextlib.closing(connection):
            sent = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
            connection.request(method, path, sent, {"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    return asked


def test_a_backup_is_announced_gets_its_turn_and_ends(ask: Ask) -> None:
    work = {"id": "nightly-web-1", "kind": "backup", "guest": "web-1", "takes_s": 600}
    status, told = ask("POST", "/operations", work)
    assert (status, told["host"], told["guest"]) == (200, "host-1", "uuid-1")
    assert until(lambda: ask("GET", "/operations/nightly-web-1")[1]["standing"] == "running")
    ask("POST", "/operations", {**work, "id": "nightly-db-1", "guest": "db-1"})

    def second() -> dict[str, Any]:
        _status, told = ask("GET", "/operations")
        assert told["policy"] == "ageing"
        found: dict[str, Any] = told["operations"][1]
        return found

    assert until(lambda: "begins_in_s" in second())
    assert {name: second()[name] for name in ("standing", "begins_in_s", "ends_in_s")} == {
        "standing": "waiting",
        "begins_in_s": 600,
        "ends_in_s": 1200,
    }
    assert ask("DELETE", "/operations/nightly-web-1")[0] == 200
    assert until(lambda: ask("GET", "/operations/nightly-db-1")[1]["standing"] == "running")
    assert ask("DELETE", "/operations/nightly-web-1")[0] == ask("GET", "/operations/nightly-web-1")[0] == 404


def test_it_is_told_of_how_many_no_time_is_foreseen(ask: Ask, desk: Desk) -> None:
    for number in range(FORESEEN + 20):
        desk.announce(Announcement(id=f"b{number}", takes_s=60, guest="x"), "host-1", f"g{number}", NOW)
    desk.announce(Announcement(id="late", takes_s=60, guest="x", priority=1), "host-1", "y", NOW)

    def told() -> Any:
        return ask("GET", "/operations")[1]

    assert until(lambda: any(one["standing"] == "running" for one in told()["operations"]))
    assert (len(told()["operations"]), told()["not_foreseen"]) == (FORESEEN + 21, 20)
    assert "begins_in_s" not in told()["operations"][-1]


def test_the_policy_is_changed_by_a_request(ask: Ask, desk: Desk) -> None:
    assert ask("PUT", "/policy", {"policy": "shortest-job"}) == (200, {"policy": "shortest-job"})
    assert ask("GET", "/policy") == (200, {"policy": "shortest-job"})
    assert desk.policy == "shortest-job"
    assert ask("PUT", "/policy", {"policy": None}) == (200, {"policy": "ageing"})


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "reason"),
    [
        ("POST", "/operations", {"id": "x", "guest": "web-1"}, 400, "takes_s"),
        ("POST", "/operations", {"id": "x", "guest": "web-1", "takes_s": 0}, 400, "takes_s"),
        ("POST", "/operations", {"id": "../x", "guest": "web-1", "takes_s": 1}, 400, "id"),
        ("POST", "/operations", {"id": "x", "guest": "web-1", "takes_s": 1, "extra": 1}, 400, "extra"),
        ("POST", "/operations", {"id": "x", "guest": "web-9", "takes_s": 1}, 422, "web-9"),
        ("POST", "/operations", {"id": "x", "host": "host-9", "takes_s": 1}, 422, "host-9"),
        ("POST", "/operations", {"id": "x", "takes_s": 1}, 422, "a guest or a host"),
        ("POST", "/operations", b"{", 400, "truncated"),
        ("POST", "/operations", b"\xff\xfe", 400, ""),
        ("POST", "/operations", b"[" * 30_000, 400, ""),
        ("POST", "/operations", b" " * 70_000, 413, "64 KiB"),
        ("PUT", "/policy", {"policy": "fair"}, 400, "fair"),
        ("PUT", "/operations", {}, 404, "method"),
        ("DELETE", "/operations", None, 404, "method"),
        ("GET", "/operations/x/y", None, 404, "path"),
        ("GET", "/", None, 404, "path"),
    ],
)
def test_what_is_wrong_is_refused_with_the_reason(
    ask: Ask, method: str, path: str, body: object, status: int, reason: str
) -> None:
    told, document = ask(method, path, body)
    assert told == status
    assert reason in document["error"]


def test_other_work_under_an_id_in_use_is_refused(ask: Ask) -> None:
    assert ask("POST", "/operations", {"id": "x", "guest": "web-1", "takes_s": 9})[0] == 200
    assert ask("POST", "/operations", {"id": "x", "guest": "web-1", "takes_s": 9})[0] == 200
    assert ask("POST", "/operations", {"id": "x", "guest": "db-1", "takes_s": 9})[0] == 409


@pytest.mark.parametrize("token", ["", TOKEN[:-1], TOKEN.upper(), "\xe9" * 20])
def test_without_the_token_nothing_is_told_or_done(ask: Ask, desk: Desk, token: str) -> None:
    for method, path in (("GET", "/operations"), ("PUT", "/policy"), ("GET", "/nothing")):
        assert ask(method, path, {"policy": "deadline"}, token) == (401, {"error": "the token is missing or wrong"})
    assert desk.policy == "ageing"


@pytest.mark.parametrize(("content", "reason"), [(None, "cannot be read"), ("abc", "16 characters"), ("", "16")])
def test_a_port_without_a_good_token_is_a_mistake_in_the_config(
    desk: Desk, tmp_path: Path, content: str | None, reason: str
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=reason):
        OperationsPage(PageOptions(port=free_port(), token_file=str(path)), desk, _nowhere)


def test_a_port_without_a_token_file_is_a_mistake_and_no_port_needs_none(desk: Desk) -> None:
    with pytest.raises(ConfigError, match="token_file"):
        OperationsPage(PageOptions(port=free_port()), desk, _nowhere)
    assert OperationsPage(PageOptions(), desk, _nowhere).port == 0


def test_a_controller_that_does_not_come_by_is_told_of_and_does_nothing_later(desk: Desk, token_file: Path) -> None:
    options = PageOptions(port=free_port(), token_file=str(token_file))
    page = OperationsPage(options, desk, _nowhere, answer_s=0.05)
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=10)
    with contextlib.closing(connection):
        connection.request("PUT", "/policy", b'{"policy": "deadline"}', {"Authorization": f"Bearer {TOKEN}"})
        assert connection.getresponse().status == 503
    assert page.next() is None
    page.close()


def _nowhere(_work: Announcement) -> tuple[str, str]:
    raise LookupError("nowhere")
