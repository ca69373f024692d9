"""Config files: what loads, and that every mistake is told at its place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot.errors import ConfigError
from virtpilot.model import Mode
from virtpilot.pipeline.settings import check, load, loads


class Broker(msgspec.Struct, frozen=True):
    """Where the broker is."""

    host: Annotated[str, msgspec.Meta(description="Broker's name.", min_length=1)] = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(description="Broker's port.", ge=1, le=65535)] = 1883
    password_file: Annotated[Path | None, msgspec.Meta(description="File with the password.")] = None


class Target(msgspec.Struct, frozen=True):
    """One target."""

    name: Annotated[str, msgspec.Meta(description="Its name.", examples=["oncall"])]
    kind: Annotated[Literal["a", "b"], msgspec.Meta(description="Its kind.")] = "a"
    weight: Annotated[float, msgspec.Meta(description="Its weight.", gt=0)] = 1.0


class Limits(msgspec.Struct, frozen=True):
    """What it may do."""

    low: Annotated[int, msgspec.Meta(description="Least.")] = 1
    high: Annotated[int, msgspec.Meta(description="Most.")] = 9

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low must not be above high")


class Config(msgspec.Struct, frozen=True):
    """A process's options."""

    cluster: Annotated[str, msgspec.Meta(description="Cluster.")]
    broker: Broker = Broker()
    limits: Limits = Limits()
    targets: list[Target] = []
    named: dict[str, Target] = {}
    hosts: list[Annotated[str, msgspec.Meta(min_length=1)]] = []
    tags: Annotated[dict[str, str], msgspec.Meta(description="Tags.")] = {}
    modes: Annotated[dict[str, Mode], msgspec.Meta(description="Modes.")] = {}


_BROKER = "known here: host, password_file, port"
_ROOT = "known here: broker, cluster, hosts, limits, modes, named, tags, targets"

BAD = [
    ("", ["1:1: missing required option cluster"]),
    ("cluster = 3", ["1:11: cluster: Expected `str`, got `int`"]),
    ('clutser = "x"', ["1:1: missing required option cluster", "1:1: unknown option clutser; did you mean cluster?"]),
    (
        'cluster = "x"\n[broker]\nprot = 1\n  "hots" = "y"\n',
        ["3:1: unknown option broker.prot; did you mean port?", "4:3: unknown option broker.hots; did you mean host?"],
    ),
    ('cluster = "x"\nbroker.port = 70_000', ["2:15: broker.port: Expected `int` <= 65535"]),
    ('cluster = "x"\nbroker = {port = "1", host = ""}',
     ["2:18: broker.port: Expected `int`, got `str`", "2:30: broker.host: Expected `str` of length >= 1"]),
    ('cluster = "x"\nbroker = 4', ["2:10: broker: expected a table, got an integer"]),
    ('cluster = "x"\n[[broker]]', ["2:1: broker: expected a table, got an array"]),
    (
        'cluster = "x"\n[[targets]]\nname = "a"\n[[targets]]\nweight = 0\nkind = "c"\n',
        [
            "4:1: missing required option targets[1].name",
            "5:10: targets[1].weight: Expected `float` > 0.0",
            "6:8: targets[1].kind: 'c' is none of a, b",
        ],
    ),
    ('cluster = "x"\ntargets = [ {name="a"},\n {name = 1, zap=2} ]',
     ["3:10: targets[1].name: Expected `str`, got `int`",
      "3:13: unknown option targets[1].zap; known here: kind, name, weight"]),
    ('cluster = "x"\n[named.one]\nkind="a"\n', ["2:1: missing required option named.one.name"]),
    ('cluster = "x"\n[tags]\na = "b"\nc = 1\n', ["4:5: tags.c: Expected `str`, got `int`"]),
    ('cluster = "x"\nhosts = [1, "", "ok", 2]', ["2:10: hosts[0]: Expected `str`, got `int`",
     "2:13: hosts[1]: Expected `str` of length >= 1", "2:23: hosts[3]: Expected `str`, got `int`"]),
    ('cluster = "x"\nmodes = { a = "acct" }\n', ["2:15: modes.a: 'acct' is none of observe, approve, act"]),
    ('cluster = "x"\n[limits]\nlow = 10\n', ["2:1: limits: low must not be above high"]),
    ('cluster = "x"\ntargets = [{name="a", weight=nan}]', ["2:30: targets[0].weight: expected a finite number"]),
    ('cluster = """\nlong\n"""\n# comment = 1\nbroker.zap = 1',
     [f"5:8: unknown option broker.zap; {_BROKER}"]),
    ('cluster = "x"\nbroker.password_file = ""', ["2:24: broker.password_file: Expected a path, got an empty string"]),
    ('cluster = "x"\ncluster = "y"\n', ["2:1: Duplicate key: it is set above"]),
    ('cluster = x\n[broker]\nport = \nzap = 1\n',
     ["1:11: Invalid value",
      "3:8: Invalid value",
      f"4:1: unknown option broker.zap; {_BROKER}"]),
    ('cluster = "x\nzap = 1', ["1:13: Illegal character '\\n'",
      f"2:1: unknown option zap; {_ROOT}"]),
    ('cluster = """x\nzap = 1', ["2:8: Unterminated string (at the end of document)"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), BAD, ids=[text.strip()[:40] or "empty" for text, _ in BAD])
def test_every_mistake_is_told_at_its_place(text: str, expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(text, "f.toml", Config)
    assert [str(problem) for problem in caught.value.problems] == [f"f.toml:{line}" for line in expected]


def test_a_good_file_loads_with_defaults_for_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "good.toml"
    path.write_bytes(
        b'cluster = "x"\r\n[broker]\r\npassword_file = "/etc/p"\r\n[[targets]]\r\nname = "n"\r\nweight = 2\r\n'
    )
    loaded = load(path, Config)
    assert loaded == Config(
        cluster="x", broker=Broker(password_file=Path("/etc/p")), targets=[Target(name="n", weight=2.0)]
    )
    assert check(path, Config) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "0:0: cannot read: No such file or directory"),
        (b'a = 1\nb = "\xff"', "2:6: not UTF-8"),
        (b"#" * (1 << 20) + b"\n", "0:0: longer than 1048576 bytes: not a config file"),
        (b"cluster = " + b"[" * 20_000, "1:1: nested too deeply"),
        (b"cluster = " + b"9" * 9_000, "1:1: Exceeds the limit"),
    ],
)
def test_a_file_that_is_no_config_is_one_problem(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "f.toml"
    if content is not None:
        path.write_bytes(content)
    (problem,) = check(path, Config)
    assert str(problem).startswith(f"{path}:{message}")


_LINES = st.sampled_from(
    ["cluster = 'x'", "[broker]", "port = 1", "port = 'x'", "[[targets]]", "name = 'n'", "a.b = [1,", "]", "x = {a = 1",
     '"""', "named.a.name = ''", "= 1", "[tags]", "'k' = 'v'", "\x00", "[", "t = 1979-05-27T07:32:00Z",
     "\u2028", "weight = inf"]
)  # fmt: skip


@settings(derandomize=True, deadline=None, max_examples=examples(300))
@given(st.one_of(st.text(max_size=60), st.lists(_LINES, max_size=8).map("\n".join)))
def test_whatever_is_in_the_file_it_loads_or_is_a_config_error_inside_the_text(text: str) -> None:
    try:
        loads(text, "f", Config)
    except ConfigError as error:
        lines = text.replace("\r\n", "\n").split("\n")
        for problem in error.problems:
            assert 1 <= problem.line <= len(lines)
            assert 1 <= problem.column <= len(lines[problem.line - 1]) + 1
