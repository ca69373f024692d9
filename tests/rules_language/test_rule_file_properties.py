"""Whatever bytes a rule file holds: rules, or problems that lie inside the file; never another error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thoroughness import examples
from virtpilot.errors import Problem
from virtpilot.model import Kind
from virtpilot.rules.language import check
from virtpilot.rules.language.expression import ExpressionError, condition, formula
from virtpilot.rules.language.units import duration_ns, quantity

REPEATABLE = settings(derandomize=True, deadline=None, max_examples=examples(150))

_WHOLE = (Path(__file__).parent / "good" / "all-keys.yaml").read_text(encoding="utf-8")
_PIECES = [
    *"{}[]:,-?|>&*!%@`'\"#\n\t \r\x00\ufeff\u2028\x85~<=.09\\",
    "---", "...", "%YAML 1.1\n", "%TAG ! x\n", "!!map ", "&a ", "*a", "<<: ", "? ", "- ", "🙂", "|2\n", ">-\n", "\x07",
    "within", "tags.", "host.", "current", "10%", "30s", "not ", "(", ")", "remedies:", "null", "virtpilot: 1\n",
]  # fmt: skip

_edits = st.lists(
    st.tuples(st.integers(0, len(_WHOLE)), st.integers(0, 4), st.sampled_from(_PIECES)), min_size=1, max_size=6
)
_texts = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from(_PIECES), max_size=40).map("".join),
    st.lists(st.sampled_from(_PIECES), max_size=20).map(lambda pieces: "virtpilot: 1\nrules:\n  - " + "".join(pieces)),
)


def edited(edits: list[tuple[int, int, str]]) -> str:
    text = _WHOLE
    for at, gone, piece in edits:
        text = text[:at] + piece + text[at + gone :]
    return text


def problems(raw: bytes) -> list[Problem]:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "rules.yaml"
        file.write_bytes(raw)
        return check([file])


def all_inside(found: list[Problem], raw: bytes) -> None:
    text = raw.decode(errors="replace")
    # The breaks that YAML knows; a mistake at the end of the file is in the line after the last one.
    last = 1 + sum(text.count(one) for one in ("\n", "\r", "\x85", "\u2028", "\u2029"))
    for problem in found:
        assert 1 <= problem.line <= last
        assert 1 <= problem.column <= len(text) + 1
        assert problem.message.strip()
        assert "\n" not in problem.message


@REPEATABLE
@given(st.one_of(st.binary(max_size=200), _texts.map(lambda text: text.encode(errors="surrogatepass"))))
def test_any_bytes_give_rules_or_problems_inside_the_file(raw: bytes) -> None:
    all_inside(problems(raw), raw)


@REPEATABLE
@given(_edits)
def test_a_damaged_file_gives_rules_or_problems_inside_the_file(edits: list[tuple[int, int, str]]) -> None:
    raw = edited(edits).encode()
    all_inside(problems(raw), raw)


@REPEATABLE
@given(_texts, st.sampled_from([Kind.VM, Kind.HOST]))
def test_any_expression_compiles_or_is_refused_inside_its_text(text: str, on: Kind) -> None:
    for compile_text in (condition, formula):
        mistake = refusal(compile_text, text, on)
        assert mistake is None or (0 <= mistake.column <= len(text) and mistake.message)


def refusal(compile_text: Callable[[str, Kind], object], text: str, on: Kind) -> ExpressionError | None:
    try:
        compile_text(text, on)
    except ExpressionError as error:
        return error
    return None


@REPEATABLE
@given(st.text(max_size=30))
def test_any_text_is_a_quantity_and_a_duration_or_neither(text: str) -> None:
    for read in (quantity, duration_ns):
        with contextlib.suppress(ValueError):
            read(text)


@REPEATABLE
@given(st.lists(st.tuples(st.integers(0, 300), st.sampled_from(["ms", "s", "m", "h"])), min_size=1, max_size=4))
def test_a_duration_is_the_sum_of_its_parts(parts: list[tuple[int, str]]) -> None:
    scale = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
    text = "".join(f"{number}{unit}" for number, unit in parts)
    assert duration_ns(text) == sum(number * scale[unit] for number, unit in parts)
