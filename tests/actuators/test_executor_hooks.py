"""Hooks: what is on the host's list is run once, with its arguments as they are, and nothing else ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.actuators.one_host import GUEST, HOST, OneHost, at, command
from tests.services import until
from virtpilot.action import Run
from virtpilot.actuators.executor import Executor
from virtpilot.actuators.hooks.hook import Hook, HookOptions, address, arguments
from virtpilot.actuators.journal import Journal
from virtpilot.errors import CommandRefused
from virtpilot.model import Outcome, Result

FIELDS = {"name": "web-1", "tags.tier": "front end"}


@pytest.fixture
def host() -> OneHost:
    return OneHost()


def executor(host: OneHost, folder: Path, *hooks: Hook, at_once: int = 4) -> Executor:
    options = HookOptions(allowed=list(hooks), at_once=at_once)
    return Executor(host, Journal(folder / "journal.jsonl"), host=HOST, hooks=options)


def run(name: str = "it", fields: dict[str, str] | None = None) -> Run:
    return Run(guest=GUEST, hook=name, fields=FIELDS if fields is None else fields)


def ended(made: Executor) -> Outcome:
    outcomes: list[Outcome] = []

    def over() -> bool:
        outcomes.extend(made.poll(at(1)))
        return bool(outcomes)

    assert until(over, 20)
    return outcomes[0]


def test_a_program_gets_its_arguments_as_they_are(host: OneHost, tmp_path: Path) -> None:
    """No shell looks at them, whatever is in them."""
    words = ["$(id)", "; rm -rf /", "*", "{name} of {tags.tier} on {host}", "{guest} {rule} {command}"]
    made = executor(host, tmp_path, Hook(name="it", command=["/usr/bin/printf", "<%s>", *words]))
    assert made.submit(command(run()), at(0)) == []
    done = ended(made)
    assert (done.result, done.action, done.after["exit_status"]) == (Result.DONE, "run it", 0)
    told = f"<$(id)><; rm -rf /><*><web-1 of front end on {HOST}><{GUEST} starved cm-1>"
    assert done.reason == f"exit status 0: {told}"
    assert not made.busy(GUEST)


def test_what_is_not_on_the_list_is_not_run(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path, Hook(name="it", command=["/bin/true"]))
    for name in ("other", "/bin/sh", "it ", ""):
        (refused,) = made.submit(command(run(name), f"cm-{name}"), at(0))
        assert (refused.result, refused.guard) == (Result.REFUSED, "hook")
    (refused,) = executor(host, tmp_path / "none").submit(command(run()), at(0))
    assert "not on the list of host-1: none" in refused.reason


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()


def test_a_program_that_fails_says_how(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path, Hook(name="it", command=["/bin/ls", "/nowhere/{name}"]))
    made.submit(command(run()), at(0))
    failed = ended(made)
    assert (failed.result, failed.after["exit_status"]) == (Result.FAILED, 2)
    assert "/nowhere/web-1" in failed.reason


def test_one_that_is_not_there_fails(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path, Hook(name="it", command=["/no/such/program"]))
    made.submit(command(run()), at(0))
    failed = ended(made)
    assert (failed.result, failed.reason.startswith("it cannot be started")) == (Result.FAILED, True)


def test_at_its_deadline_it_is_ended_with_all_that_it_has_started(host: OneHost, tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    script = tmp_path / "slow"
    script.write_text(f"#!/bin/sh\ntrap '' TERM\nsleep 600 &\necho $! >{mark}\nwait\n")
    script.chmod(0o755)
    made = executor(host, tmp_path, Hook(name="it", command=[str(script)], deadline_s=1))
    made.submit(command(run()), at(0))
    failed = ended(made)
    assert (failed.result, failed.reason) == (Result.FAILED, "ended after 1 s")
    assert until(lambda: not _lives(int(mark.read_text())), 20)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_what_it_says_is_bounded_and_does_no_harm(host: OneHost, tmp_path: Path) -> None:
    script = tmp_path / "chatty"
    script.write_text("#!/bin/sh\nprintf '\\033[31mred\\n\\000'\nyes | head -c 3000000\n")
    script.chmod(0o755)
    made = executor(host, tmp_path, Hook(name="it", command=[str(script)], output_max=100))
    made.submit(command(run()), at(0))
    done = ended(made)
    assert done.result is Result.DONE
    assert done.reason.startswith("exit status 0: [31mred y y y")
    assert len(done.reason) < 150
    assert done.reason.isprintable()


def test_it_sees_nothing_of_the_agents_environment(
    host: OneHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "password")
    made = executor(host, tmp_path, Hook(name="it", command=["/usr/bin/env"]))
    made.submit(command(run()), at(0))
    done = ended(made)
    assert ("PATH=" in done.reason, "password" in done.reason) == (True, False)


def test_it_is_run_once_whatever_happens(host: OneHost, tmp_path: Path) -> None:
    """Not by the same command again, nor by an agent that starts anew."""
    log = tmp_path / "log"
    script = tmp_path / "once"
    script.write_text(f"#!/bin/sh\necho x >>{log}\nsleep 600\n")
    script.chmod(0o755)
    hook = Hook(name="it", command=[str(script)], deadline_s=30)
    made = executor(host, tmp_path, hook)
    made.submit(command(run()), at(0))
    assert made.submit(command(run()), at(0)) == []
    assert until(log.exists, 20)
    made.close()
    again = executor(host, tmp_path, hook)
    failed = ended(again)
    assert (failed.result, failed.reason) == (
        Result.FAILED,
        "the agent stopped while it ran: whether it was done is not known",
    )
    assert again.submit(command(run()), at(2)) == [failed]
    assert log.read_text() == "x\n"


def test_so_many_run_at_once(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path, Hook(name="it", command=["/bin/sleep", "600"]), at_once=1)
    made.submit(command(run()), at(0))
    (refused,) = made.submit(command(run(), "cm-2"), at(0))
    assert (refused.guard, made.busy(GUEST)) == ("busy", True)
    made.close()


@pytest.mark.parametrize("value", ["", "-rf", "../x", "a/b", "a..b", "a\nb", "a\0b", "$(id)", "`id`", "x" * 256, ".x"])
def test_a_value_that_is_no_name_is_refused(host: OneHost, tmp_path: Path, value: str) -> None:
    mark = tmp_path / "mark"
    hook = Hook(name="it", command=["/usr/bin/touch", str(mark), "{name}"])
    (refused,) = executor(host, tmp_path, hook).submit(command(run(fields={"name": value})), at(0))
    assert (refused.result, refused.guard, mark.exists()) == (Result.REFUSED, "value", False)


@given(st.text(max_size=300))
def test_no_value_adds_an_argument_or_an_option(value: str) -> None:
    hook = Hook(name="it", command=["/bin/x", "{name}", "--of={name}"])
    try:
        argv = arguments(hook, {"name": value})
    except CommandRefused:
        return
    assert list(argv) == ["/bin/x", value, f"--of={value}"]
    assert not value.startswith(("-", "/", "."))
    assert "\0" not in value
    assert ".." not in value


@given(st.text(max_size=300))
def test_no_value_leads_a_webhook_elsewhere(value: str) -> None:
    hook = Hook(name="it", url="https://hooks.example/notify/{name}?of={name}")
    try:
        url = address(hook, {"name": value})
    except CommandRefused:
        return
    rest = url.removeprefix("https://hooks.example/notify/")
    assert rest.count("?") == 1
    assert not set(rest) & set("/#&@ ")


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"command": ["/bin/x"], "url": "http://x/"},
        {"command": ["x"]},
        {"command": ["/bin/{name}"]},
        {"command": ["/bin/x", "{secret}"]},
        {"command": ["/bin/x", "{name"]},
        {"url": "http://{name}/"},
        {"url": "http://u:p@x/"},
        {"url": "file:///etc/passwd"},
        {"url": "http://x/ y"},
        {"url": "http://x:port/"},
    ],
)
def test_a_hook_that_makes_no_sense_is_refused_with_the_config(made: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": "it", **made}, Hook)


class Answering(BaseHTTPRequestHandler):
    """Answers as its path says, and remembers what came."""

    came: ClassVar[list[tuple[str, str | None, dict[str, str]]]] = []
    held = threading.Event()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.came.append((self.path, self.headers["Authorization"], msgspec.json.decode(body)))
        if self.path.startswith("/hold"):
            self.held.wait(20)
        self.send_response(302 if self.path.startswith("/away") else 500 if self.path.startswith("/bad") else 200)
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(b"heard you" * 1000)

    def log_message(self, *_words: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[str]:
    Answering.came.clear()
    Answering.held.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        Answering.held.set()
        made.shutdown()


def test_a_webhook_is_posted_with_what_is_known_of_the_guest(host: OneHost, tmp_path: Path, server: str) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    made = executor(host, tmp_path, Hook(name="it", url=f"{server}/to/{{tags.tier}}", token_file=str(token)))
    made.submit(command(run()), at(0))
    done = ended(made)
    assert (done.result, done.after["http_status"]) == (Result.DONE, 200)
    assert done.reason.startswith("HTTP status 200: heard you")
    assert len(done.reason) < 500
    ((path, authorization, body),) = Answering.came
    assert (path, authorization) == ("/to/front%20end", "Bearer s3cret")
    assert body == {**FIELDS, "guest": GUEST, "host": HOST, "rule": "starved", "command": "cm-1"}


@pytest.mark.parametrize(("path", "told"), [("/bad", "HTTP status 500"), ("/away", "HTTP status 302")])
def test_a_webhook_that_is_not_taken_has_failed_and_is_led_nowhere(
    host: OneHost, tmp_path: Path, server: str, path: str, told: str
) -> None:
    made = executor(host, tmp_path, Hook(name="it", url=f"{server}{path}"))
    made.submit(command(run()), at(0))
    failed = ended(made)
    assert (failed.result, failed.reason[: len(told)]) == (Result.FAILED, told)
    assert [one[0] for one in Answering.came] == [path]


def test_a_webhook_that_nobody_answers_has_failed_in_its_time(host: OneHost, tmp_path: Path, server: str) -> None:
    made = executor(host, tmp_path, Hook(name="it", url=f"{server}/hold", deadline_s=0.5))
    made.submit(command(run()), at(0))
    failed = ended(made)
    assert failed.result is Result.FAILED
    made.submit(command(run(), "cm-2"), at(2))
    assert (failed.reason == "no answer within 0.5 s") or "timed out" in failed.reason


def test_a_webhook_that_cannot_be_reached_has_failed(host: OneHost, tmp_path: Path) -> None:
    made = executor(host, tmp_path, Hook(name="it", url="http://127.0.0.1:9/"))
    made.submit(command(run()), at(0))
    assert ended(made).reason.startswith("not delivered")
