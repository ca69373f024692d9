"""The maker of broker users: random passwords for their owners, kept on a second run, no names that break topics."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.mosquitto import users
from tests.thoroughness import examples
from virtpilot.topics import check_name


def entries(folder: Path) -> dict[str, str]:
    lines = (folder / users.HASHED).read_text().splitlines()
    return dict(line.split(":", 1) for line in lines)


def test_a_second_run_adds_users_and_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "users"
    users.make_users(folder, ["controller", "writer"])
    before = {path.name: path.read_text() for path in folder.glob("*.password")}
    assert users.make_users(folder, ["host-1", "writer"]) == [folder / "host-1.password"]
    after = {path.name: path.read_text() for path in folder.glob("*.password")}
    assert before.items() < after.items()
    assert len(set(after.values())) == 3
    assert set(entries(folder)) == {"controller", "writer", "host-1"}


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "users"
    users.make_users(folder, ["controller"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_an_empty_password_of_a_run_cut_short_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "writer.password").touch(mode=0o600)
    users.make_users(tmp_path, ["writer"])
    assert len((tmp_path / "writer.password").read_text()) > 40


def test_no_password_is_in_the_hashed_file_and_equal_ones_look_different(tmp_path: Path) -> None:
    users.make_users(tmp_path, ["a", "b"])
    (tmp_path / "b.password").write_text((tmp_path / "a.password").read_text())
    users.make_users(tmp_path, ["a"])
    found = entries(tmp_path)
    assert found["a"] != found["b"]
    assert (tmp_path / "a.password").read_text().strip() not in (tmp_path / users.HASHED).read_text()


@settings(derandomize=True, deadline=None, max_examples=examples(200))
@given(name=st.text(alphabet="ab1.-_/+#:\n\0 é", max_size=6))
def test_a_user_has_a_name_that_a_host_may_have(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What users.py takes and what topics take is the same; nothing is written for a bad name."""
    folder = tmp_path_factory.getbasetemp() / "named"
    try:
        check_name(name)
    except ValueError:
        before = set(folder.glob("*"))
        with pytest.raises(ValueError, match="no names"):
            users.make_users(folder, [name])
        assert set(folder.glob("*")) == before
    else:
        users.make_users(folder, [name])
        assert (folder / f"{name}.password").is_file()


@pytest.mark.parametrize(("names", "status"), [(["writer"], 0), (["a/b"], 2), ([], 2)])
def test_the_command_line_needs_python_alone(names: list[str], status: int, tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", str(Path(users.__file__)), str(tmp_path / "users"), *names]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == status
    passwords = [path.read_text().strip() for path in tmp_path.rglob("*.password")]
    assert not any(password in ended.stdout + ended.stderr for password in passwords)
