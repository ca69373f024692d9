"""The sample file and the reference table come from the declarations and agree with them."""

from __future__ import annotations

import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from virtpilot.pipeline.settings import loads, reference, sample


class Colour(StrEnum):
    """A choice."""

    RED = "red"
    BLUE = "blue"


class Inner(msgspec.Struct, frozen=True):
    """A section inside."""

    ratio: Annotated[float, msgspec.Meta(description="A share.", ge=0, le=1)] = 0.5
    path: Annotated[Path, msgspec.Meta(description="A file.")] = Path("/var/lib/x y")


class Item(msgspec.Struct, frozen=True):
    """One of many."""

    name: Annotated[str, msgspec.Meta(description="Which.", examples=["oncall"])]
    port: Annotated[int, msgspec.Meta(description="Where.", ge=1)]
    tries: Annotated[int, msgspec.Meta(description="How often.", gt=0)] = 3


class Page(msgspec.Struct, frozen=True):
    """Options of a page."""

    colour: Annotated[Colour, msgspec.Meta(description="Colour | hue.")] = Colour.RED
    kind: Annotated[Literal["x", "y"], msgspec.Meta(description="Kind.")] = "y"
    text: Annotated[str, msgspec.Meta(description="Text.")] = 'a "quoted" \\ é\x7f'
    names: Annotated[list[str], msgspec.Meta(description="Names.")] = msgspec.field(default_factory=lambda: ["a", "b"])
    tags: Annotated[dict[str, int], msgspec.Meta(description="Tags.")] = msgspec.field(
        default_factory=lambda: {"a b": 1}
    )
    on: Annotated[bool, msgspec.Meta(description="Whether.")] = True
    token_file: Annotated[Path | None, msgspec.Meta(description="Token.")] = None
    inner: Inner = Inner()
    extra: Inner | None = None
    items: Annotated[list[Item], msgspec.Meta(description="The items.")] = []
    by_name: dict[str, Item] = {}


def test_the_sample_loads_as_it_is_and_gives_the_defaults() -> None:
    assert loads(sample(Page), "s", Page) == Page()


def test_the_sample_with_every_comment_sign_of_an_option_taken_away_still_loads() -> None:
    lines = [line[1:] if line.startswith("#") and line[1:2] != " " else line for line in sample(Page).splitlines()]
    loaded = loads("\n".join(lines), "s", Page)
    assert (loaded.colour, loaded.text, loaded.names, loaded.tags) == (
        Page().colour,
        Page().text,
        ["a", "b"],
        {"a b": 1},
    )
    assert loaded.inner == loaded.extra == Inner()
    assert loaded.items == [Item(name="oncall", port=1)]
    assert loaded.by_name == {"NAME": Item(name="oncall", port=1)}
    assert loaded.token_file == Path("/path/to/file")


def test_the_sample_tells_meaning_type_and_what_is_required() -> None:
    text = sample(Page)
    assert '# Colour | hue. (one of red, blue)\n#colour = "red"\n' in text
    assert "# A share. (number 0..1)\n#ratio = 0.5\n" in text
    assert '#[[items]]\n# Which. (string) Required.\n#name = "oncall"\n' in text
    assert "# Where. (integer ≥ 1) Required.\n" in text
    assert text.startswith("# Options of a page.\n")
    assert tomllib.loads(text) == {"inner": {}}


def test_a_required_option_stands_in_the_sample_to_be_filled_in() -> None:
    assert tomllib.loads(sample(Item)) == {"name": "oncall", "port": 1}


def test_the_reference_has_a_row_for_every_option() -> None:
    rows = reference(Page).splitlines()
    assert rows[0] == "| option | type | default | meaning |"
    assert '| `colour` | one of red, blue | `"red"` | Colour \\| hue. |' in rows
    assert "| `token_file` | path | not set | Token. |" in rows
    assert "| `items[].name` | string | required | Which. |" in rows
    assert "| `by_name.NAME.tries` | integer > 0 | `3` | How often. |" in rows
    assert len(rows) == 2 + 7 + 2 + 2 + 3 + 3
