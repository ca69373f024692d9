"""Secrets come from files that not everybody may read, or from the environment, and never show."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from virtpilot.errors import ConfigError
from virtpilot.pipeline.settings import read_secret


def _file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_no_secret_named_is_none() -> None:
    assert read_secret(None, None) is None


@pytest.mark.parametrize(("content", "secret"), [(b"s3cret\n", "s3cret"), (b" a b \r\n", " a b "), (b"x\n\n", "x\n")])
def test_a_file_gives_its_content_without_one_newline(tmp_path: Path, content: bytes, secret: str) -> None:
    assert read_secret(_file(tmp_path, content, 0o640), None) == secret


def test_a_link_to_a_private_file_is_followed(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(_file(tmp_path, b"s"))
    assert read_secret(link, None) == "s"


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602, 0o666])
def test_a_file_open_to_everybody_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="broker password: everybody on this machine may use it"):
        read_secret(_file(tmp_path, b"s3cret", mode), None, name="broker password")


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "empty"), (b"\n", "empty"), (b"\xff\xfes3cret", "not UTF-8"), (b"s3cret" * 20_000, "longer")],
)
def test_what_cannot_be_a_secret_is_refused_without_showing_it(tmp_path: Path, content: bytes, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        read_secret(_file(tmp_path, content), None)
    assert "s3cret" not in str(caught.value)


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path, why in [(tmp_path / "none", "No such file"), (tmp_path, "directory|regular"), (pipe, "regular")]:
        with pytest.raises(ConfigError, match=why):
            read_secret(path, None)


def test_the_environment_gives_a_secret_and_an_unset_variable_is_refused() -> None:
    assert read_secret(None, "TOKEN", environ={"TOKEN": "s"}) == "s"
    for environ in ({}, {"TOKEN": ""}):
        with pytest.raises(ConfigError, match=r"\$TOKEN:0:0: token: the environment variable is not set"):
            read_secret(None, "TOKEN", name="token", environ=environ)


def test_both_at_once_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not both"):
        read_secret(_file(tmp_path, b"s"), "TOKEN")
