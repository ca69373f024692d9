"""`virtpilot spool ls|show|replay` on spools and dead letters: what it tells, what it sends again, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.conftest import MakeMosquitto
from tests.processes.running import Site, toml
from virtpilot.clock import SECOND
from virtpilot.errors import InputError, VirtpilotError
from virtpilot.pipeline.commands import app
from virtpilot.pipeline.dead_letters import DeadLetters
from virtpilot.pipeline.process import sole_user
from virtpilot.pipeline.spool import Spool, SpoolOptions
from virtpilot.pipeline.store.file import FileStore

AT_NS = 1_700_000_000 * SECOND


def run(*arguments: str | Path) -> tuple[int, str]:
    """Return the exit status that a person sees, and what was printed."""
    result = CliRunner().invoke(app, ["spool", *map(str, arguments)])
    match result.exception:
        case InputError():
            return 2, str(result.exception)
        case VirtpilotError():
            return 1, str(result.exception)
        case None | SystemExit():
            return result.exit_code, result.stdout or result.output
    raise result.exception


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """An agent's state folder with messages of two boots, of which the first has a gap."""
    folder = tmp_path / "state"
    old = Spool(folder / "spool", "old", SpoolOptions())
    for number in range(1, 5):
        old.append(b"m f=%d %d\n" % (number, number), AT_NS + number * SECOND)
    old.trim("old", [(2, 2)])
    old.close()
    new = Spool(folder / "spool", "new", SpoolOptions())
    new.trim("old", [(2, 2)])
    new.append(b"m f=9 9\nm f=10 10\n", AT_NS + 60 * SECOND)
    new.close()
    return folder


@pytest.fixture
def writer(tmp_path: Path) -> Path:
    """A writer's config with a file store."""
    path = tmp_path / "writer.toml"
    path.write_text(toml({"cluster": "c", "file_store": str(tmp_path / "store"), "state_folder": str(tmp_path / "w")}))
    return path


@pytest.fixture
def dead(tmp_path: Path) -> Path:
    folder = tmp_path / "w" / "dead-letters"
    letters = DeadLetters(folder)
    letters.keep("virtpilot/c/metrics/h1", [(b"m f=1 1", "too old"), (b"no line", "malformed")], AT_NS)
    letters.keep("virtpilot/c/metrics/h2", [(b"no line either", "malformed")], AT_NS + SECOND)
    return folder


def test_ls_tells_segments_boots_and_numbers_and_changes_nothing(state: Path) -> None:
    before = {path.name: path.read_bytes() for path in (state / "spool").iterdir()}
    status, text = run("ls", state, "--json")
    document = json.loads(text)
    assert status == 0
    assert (document["kind"], document["messages"]) == ("spool", 5)
    assert (document["oldest"], document["newest"]) == ("2023-11-14T22:13:21Z", "2023-11-14T22:14:20Z")
    assert [(boot["boot"], boot["sequences"]) for boot in document["boots"]] == [("old", [[1, 4]]), ("new", [[1, 1]])]
    assert [file["messages"] for file in document["segments"]] == [4, 1]
    status, text = run("ls", state / "spool")
    assert status == 0
    assert "boot old: 4 messages, 1-4" in text
    assert {path.name: path.read_bytes() for path in (state / "spool").iterdir()} == before


def test_ls_tells_a_torn_end_and_leaves_it(state: Path) -> None:
    last = max((state / "spool").iterdir())
    with last.open("ab") as file:
        file.write(b"torn")
    size = last.stat().st_size
    assert "4 torn bytes" in run("ls", state)[1]
    assert last.stat().st_size == size


def test_show_prints_the_lines(state: Path) -> None:
    assert run("show", state, "--boot", "new") == (0, "# new/1 2023-11-14T22:14:20Z\nm f=9 9\nm f=10 10\n")
    status, text = run("show", state, "--seq", "1", "--json")
    assert (status, [(one["boot"], one["lines"]) for one in json.loads(text)]) == (
        0,
        [("old", ["m f=1 1"]), ("new", ["m f=9 9", "m f=10 10"])],
    )
    assert run("show", state, "--boot", "none")[0] == 1


def test_dead_letters_are_listed_with_their_reasons_and_shown(dead: Path) -> None:
    document = json.loads(run("ls", dead, "--json")[1])
    assert document["reasons"] == {"malformed": 2, "too old": 1}
    assert document["topics"] == {"virtpilot/c/metrics/h1": 2, "virtpilot/c/metrics/h2": 1}
    assert "2 lines: malformed" in run("ls", dead.parent)[1]
    status, text = run("show", dead)
    assert status == 0
    assert text.splitlines()[:2] == ["# 2023-11-14T22:13:20Z virtpilot/c/metrics/h1: too old", "m f=1 1"]
    assert len(json.loads(run("show", dead, "--json")[1])) == 3
    assert run("show", dead, "--seq", "1")[0] == 2


@pytest.mark.parametrize("arguments", [("ls",), ("show",), ("replay", "--config", "writer.toml")])
def test_a_folder_that_holds_neither_is_wrong_input(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    command, *rest = arguments
    status, text = run(command, tmp_path, *rest)
    assert (status, "neither a spool nor dead letters" in text) == (2, True)


def test_a_spool_is_replayed_into_a_store_once_under_its_own_numbers(state: Path, writer: Path, tmp_path: Path) -> None:
    assert run("replay", state, "--config", writer)[0] == 2, "whose it is must be said"
    status, text = run("replay", state, "--config", writer, "--host", "h1", "--json")
    assert (status, json.loads(text)) == (0, {"stored": 5, "left": 0, "refused": []})
    assert [message_id for message_id, _ in FileStore(tmp_path / "store").read()] == [
        "h1/old/1", "h1/old/2", "h1/old/3", "h1/old/4", "h1/new/1",
    ]  # fmt: skip
    assert run("ls", state)[1].startswith("spool: 0 messages")
    assert run("replay", state, "--config", writer, "--host", "h1")[0] == 0


def test_nothing_is_replayed_while_a_process_uses_the_folder(state: Path, dead: Path, writer: Path) -> None:
    for folder in (state, dead.parent):
        with sole_user(folder):
            status, text = run("replay", folder, "--config", writer, "--host", "h1")
            assert (status, "in use by process" in text) == (1, True)
            assert run("ls", folder)[0] == 0, "reading is free"


def test_corrected_dead_letters_are_replayed_and_the_others_stay_with_the_reason(
    dead: Path, writer: Path, tmp_path: Path
) -> None:
    path = dead / "dead-letters.jsonl"
    path.write_text(path.read_text().replace("no line either", "m f=3 3"))
    status, text = run("replay", dead, "--config", writer)
    assert status == 1
    assert text.splitlines()[0] == "2 stored, 1 left"
    assert [sample.time_ns for sample in FileStore(tmp_path / "store").samples_in_order()] == [1, 3]
    (left,) = map(json.loads, path.read_text().splitlines())
    assert (left["line"], left["topic"]) == ("no line", "virtpilot/c/metrics/h1")
    assert "expected" in left["reason"]
    path.write_text(path.read_text().replace("no line", "m f=2 2"))
    assert run("replay", path, "--config", writer)[0] == 0
    assert not path.exists()


def test_a_dead_letter_that_is_none_is_told_before_anything_is_sent(dead: Path, writer: Path, tmp_path: Path) -> None:
    with (dead / "dead-letters.jsonl").open("a") as file:
        file.write("{torn\n")
    status, text = run("replay", dead, "--config", writer)
    assert (status, "1 lines are no dead letters" in text) == (1, True)
    assert list(FileStore(tmp_path / "store").read()) == []


def test_dead_letters_do_not_go_over_an_agents_bus(dead: Path, tmp_path: Path) -> None:
    assert run("replay", dead, "--config", tmp_path / "agent.toml")[0] == 2


@pytest.mark.server
def test_a_spool_is_replayed_over_the_bus_until_a_real_writer_has_reported_it(
    state: Path, make_mosquitto: MakeMosquitto, tmp_path: Path
) -> None:
    broker = make_mosquitto()
    (tmp_path / "site").mkdir()
    site = Site(tmp_path / "site", "c", broker.port)
    config = tmp_path / "agent.toml"
    config.write_text(toml({"cluster": "c", "host": "h1", "bus": {"port": broker.port}}))
    status, text = run("replay", state, "--config", config, "--within", "1", "--json")
    assert (status, json.loads(text)["left"]) == (1, 5), "nobody reports"
    try:
        site.file_writer().start().up()
        status, text = run("replay", state, "--config", config, "--within", "30", "--json")
        assert (status, json.loads(text)) == (0, {"stored": 5, "left": 0, "refused": []})
        found = {message_id for message_id, _ in FileStore(site.stored).read()}
        assert found == {"h1/new/1", *(f"h1/old/{number}" for number in range(1, 5))}
    finally:
        site.close()


def test_a_locked_file_of_another_place_is_no_matter(dead: Path, writer: Path, tmp_path: Path) -> None:
    """A corrected copy can be replayed while the writer runs."""
    copy = tmp_path / "copies" / "dead.jsonl"
    copy.parent.mkdir()
    copy.write_text(
        (dead / "dead-letters.jsonl").read_text().replace("no line either", "m f=3 3").replace("no line", "m f=2 2")
    )
    with sole_user(dead.parent):
        assert run("replay", copy, "--config", writer)[0] == 0
    assert not copy.exists()
