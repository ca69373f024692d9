"""`virtpilot rules fmt`: one layout, the same for ever, the same meaning, every comment kept."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.command_line import said
from tests.thoroughness import examples
from virtpilot.errors import RuleError
from virtpilot.pipeline.rulebook import LIBRARY
from virtpilot.rules.language import load
from virtpilot.rules.language.layout import formatted
from virtpilot.rules.language.starter import starter

HERE = Path(__file__).parent
FILES = [*sorted((HERE / "good").glob("*.yaml")), *sorted(LIBRARY.glob("*.yaml")), HERE / "layout" / "messy.yaml"]

blank = st.sampled_from([" ", "  ", "   "])
comment = st.one_of(st.just(""), st.from_regex(r" #[a-z:{}' ]{0,12}x", fullmatch=True), st.just("  # 1 > 2"))
indent = st.sampled_from(["", "  ", "    "])
own_line = st.lists(st.sampled_from(["", "# alone\n", "      # far in\n", "\n", "\n\n\n"]), max_size=2).map("".join)


@st.composite
def rule_files(draw: st.DrawFn) -> str:
    """A right file in a layout of somebody's own."""
    parts = [draw(own_line), "virtpilot:", draw(blank), "1", draw(comment), "\n", draw(own_line)]
    parts += ["rules:", draw(comment), "\n"]
    outer = draw(indent)
    for number in range(draw(st.integers(1, 3))):
        parts += [draw(own_line), f"{outer}-{draw(blank)}"]
        column = len(parts[-1])
        keys = [f"name: r{number}", "on: vm", draw(st.sampled_from(WHENS))]
        keys += draw(st.lists(st.sampled_from(OTHERS), unique=True, max_size=len(OTHERS)))
        for place, key in enumerate(keys):
            name, _, value = key.partition(": ")
            parts += ["" if place == 0 else draw(own_line) + " " * column]
            parts += [f"{name}:{draw(blank)}{value}{draw(comment)}\n"]
    return "".join(parts) + draw(own_line)


WHENS = [
    "when: cpu_steal_ratio > 10%",
    'when: "cpu_steal_ratio   > 10%"',
    "when: 'tags.a == \"#b\" and cpu_usage_ratio > 1%'",
]
OTHERS = ["for: 30s", "notify: [a,b]", "remedies: [{migrate:  {to: best}}]", 'about: "it\'s # not"', "priority: 07"]


def comments(text: str) -> Counter[str]:
    return Counter(" ".join(found.split()) for found in re.findall(r"(?:^|\s)#[^\n]*", text))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_layout_is_stable(file: Path) -> None:
    text = file.read_bytes().decode()
    once = formatted(text, file.name)
    if file.parent == LIBRARY:
        assert once == text, "what is shipped has it"
    else:
        assert formatted(once, file.name) == once
    assert "\r" not in once
    assert once.endswith("\n")


def test_the_layout_is_this() -> None:
    messy = HERE / "layout" / "messy.yaml"
    assert formatted(messy.read_text(), "messy") == messy.with_suffix(".txt").read_text()


def test_what_one_starts_from_has_it() -> None:
    for name, text in starter("mine").items():
        assert formatted(text, name) == text


@settings(deadline=None, max_examples=examples(100))
@given(text=rule_files())
def test_whatever_the_layout_was_it_means_the_same_and_keeps_its_comments(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    once = formatted(text, "a")
    assert formatted(once, "a") == once
    assert comments(once) == comments(text)
    folder = tmp_path_factory.mktemp("layout")
    (folder / "a.yaml").write_text(text)
    (folder / "b.yaml").write_text(once)
    before, after = load([folder / "a.yaml"]).rules, load([folder / "b.yaml"]).rules
    assert [(r.name, r.digest, r.when.text, r.about, r.priority, r.notify) for r in before] == [
        (r.name, r.digest, r.when.text, r.about, r.priority, r.notify) for r in after
    ]


@pytest.mark.parametrize("text", ["a: [", "a: &x 1\nb: *x\n", "a: !!python/name:os.system 1\n"])
def test_what_is_not_read_is_not_laid_out(text: str) -> None:
    with pytest.raises(RuleError):
        formatted(text, "a")


def test_lines_that_only_look_like_comments_stay() -> None:
    text = "virtpilot: 1\nrules:\n  - about: |\n        # 1\n      # 2\n    name: a\n"
    assert "# 1" in formatted(text, "a")


def fmt(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "virtpilot.pipeline", "rules", "fmt", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_the_command_tells_what_it_changes_and_changes_it_once(tmp_path: Path) -> None:
    messy = (HERE / "layout" / "messy.yaml").read_text()
    (tmp_path / "a.yaml").write_text(messy)
    done = fmt("--check", tmp_path)
    assert (done.returncode, done.stdout) == (1, f"{tmp_path}/a.yaml\n")
    assert (tmp_path / "a.yaml").read_text() == messy
    assert said("rules", "fmt", tmp_path).returncode == 0
    assert (tmp_path / "a.yaml").read_text() == (HERE / "layout" / "messy.txt").read_text()
    done = said("rules", "fmt", "--check", tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    (tmp_path / "b.yaml").write_text("a: [")
    assert said("rules", "fmt", tmp_path).returncode == 2
