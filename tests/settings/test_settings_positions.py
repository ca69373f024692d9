"""The scanner finds each key and value of any TOML document where it stands."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot.pipeline.toml_positions import scan

_KEYS = st.sampled_from(["a", "b-1", '"x y"', "'l.t'", '"q\\"\\u00e9"', "7"])
_SCALARS = st.sampled_from(
    [
        "1",
        "-2.5e3",
        "true",
        "'#'",
        '"a # [b] = \\" {"',
        '"""m\n[x]\n""q"""""',
        "'''l\n'y' '''",
        "1979-05-27 07:32:00",
        "0xff",
    ]
)
_INLINE = st.sampled_from(["1", "'x'", '", ]}"', "true", "1.5"])
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[ # c ]\n " + " ,\n\t".join(items) + "\n]"),
        st.dictionaries(_KEYS, _INLINE, max_size=3).map(
            lambda pairs: "{ " + ", ".join(f"{key} = {value}" for key, value in pairs.items()) + " }"
        ),
    ),
    max_leaves=4,
)
_PAIRS = st.tuples(st.lists(_KEYS, min_size=1, max_size=2).map(" . ".join), _VALUES).map(" = ".join)
_HEADERS = st.tuples(st.booleans(), st.lists(_KEYS, min_size=1, max_size=3).map(".".join)).map(
    lambda both: f"[[{both[1]}]]" if both[0] else f"[ {both[1]} ]"
)
_STATEMENTS = st.one_of(_PAIRS, _PAIRS, _HEADERS, st.just("# [no] = 1"), st.just("  ")).map(
    lambda text: f"  {text} # end"
)


def _valid(statements: list[str]) -> str:
    """Keep the statements that go together: TOML forbids setting a thing twice."""
    text = ""
    for statement in statements:
        try:
            tomllib.loads(text + statement + "\n")
        except tomllib.TOMLDecodeError:
            continue
        text += statement + "\n"
    return text


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [found for step, item in items for found in ((*path, step), *_paths(item, (*path, step)))]


def _rest(text: str, place: tuple[int, int]) -> str:
    lines = text.split("\n")
    return "\n".join([lines[place[0] - 1][place[1] - 1 :], *lines[place[0] :]])


@settings(derandomize=True, deadline=None, max_examples=examples(300))
@given(st.lists(_STATEMENTS, max_size=10).map(_valid))
def test_every_path_of_the_document_has_its_place_and_no_other(text: str) -> None:
    found = scan(text)
    document = tomllib.loads(text)
    paths = set(_paths(document))
    assert {path for path in paths if isinstance(path[-1], str)} == set(found.keys)
    assert set(found.values) <= paths
    for path, place in found.keys.items():
        key = str(path[-1])
        rest = _rest(text, place)
        assert rest.startswith((key, f"'{key}'", '"')), (path, place)


@settings(derandomize=True, deadline=None, max_examples=examples(200))
@given(st.lists(_STATEMENTS, max_size=10).map(_valid))
def test_a_value_stands_where_it_says(text: str) -> None:
    document = tomllib.loads(text)
    for path, place in scan(text).values.items():
        value: Any = document
        for step in path:
            value = value[step]
        rest = _rest(text, place)
        if isinstance(value, bool):
            assert rest.startswith(str(value).lower())
        elif isinstance(value, str):
            assert rest[0] in "\"'"
        elif isinstance(value, list):
            assert rest[0] == "["
        elif isinstance(value, dict):
            assert rest[0] in "{["
        else:
            assert rest[0] in "-0123456789"


@settings(derandomize=True, deadline=None, max_examples=examples(200))
@given(st.text(alphabet="a=[]{}\"'.,#\n\\ ", max_size=30))
def test_text_that_is_no_toml_ends_the_scan_quietly(text: str) -> None:
    scan(text)
