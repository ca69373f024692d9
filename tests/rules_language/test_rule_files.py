"""Rule files by example: `good/*.yaml` with what they mean, `bad/*` with every mistake at its place."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtpilot.errors import RuleError
from virtpilot.rules.language import MigrateRemedy, Rule, SetRemedy, check, load
from virtpilot.rules.language.load import MAX_PROBLEMS
from virtpilot.rules.language.records import AllocateRemedy, Expect, PowerRemedy, Remedy, RunRemedy
from virtpilot.rules.language.safe_yaml import MAX_BYTES

HERE = Path(__file__).parent
GOOD = sorted((HERE / "good").glob("*.yaml"))
BAD = sorted(path for path in (HERE / "bad").iterdir() if path.suffix != ".txt")
RULE = "  - {{name: {name}, on: vm, when: cpu_steal_ratio > 10%}}\n"


def rules(*names: str) -> str:
    return "virtpilot: 1\nrules:\n" + "".join(RULE.format(name=name) for name in names)


def lines(rule: Rule) -> Iterator[str]:
    """What a rule means, for a person to compare with its file."""
    yield f"{rule.name}: on {rule.on}, {rule.mode}, {rule.severity}, priority {rule.priority}, no data: {rule.no_data}"
    if rule.group:
        yield f"  in {rule.group}"
    yield f"  about {rule.about!r}, notify {list(rule.notify)}"
    yield f"  when {rule.when.text!r} for {rule.for_ns / 1e9:g} s"
    clear = rule.clear.text if rule.clear else None
    yield f"  clear {clear!r} for {rule.clear_for_ns / 1e9:g} s, cooldown {rule.cooldown_ns / 1e9:g} s"
    if rule.where:
        yield f"  where {rule.where.text!r}"
    if rule.unless:
        yield f"  unless {rule.unless.text!r}"
    yield from attributes(rule)
    yield f"  reads {' '.join('.'.join(pair) for pair in sorted({p for c in rule.conditions() for p in c.fields}))}"
    for remedy in rule.remedies:
        yield does(remedy)
        if isinstance(remedy.expect, Expect):
            yield f"    expect {remedy.expect.condition.text!r} within {remedy.expect.within_ns / 1e9:g} s"


def does(remedy: Remedy) -> str:
    match remedy:
        case SetRemedy():
            return f"  set {remedy.knob} to {remedy.formula.text!r} for {remedy.lease_ns / 1e9:g} s"
        case MigrateRemedy():
            return "  migrate"
        case RunRemedy():
            return f"  run {remedy.hook}"
        case AllocateRemedy():
            what = f"{remedy.resource} by {remedy.policy}, {remedy.knob}, {remedy.reserve_ratio:g} left"
            return f"  divide {what} for {remedy.lease_ns / 1e9:g} s"
        case PowerRemedy():
            return f"  {remedy.verb} within {remedy.within_ns / 1e9:g} s"


def attributes(rule: Rule) -> Iterator[str]:
    for name, times in (("during", rule.during), ("not during", rule.not_during)):
        if times:
            yield f"  {name} {', '.join(time.text for time in times)}"
    if rule.cooldown.down_ns != rule.cooldown.up_ns:
        yield f"  cooldown after down {rule.cooldown.down_ns / 1e9:g} s"
    for budget in rule.budgets:
        yield f"  budget of the {budget.scope} {budget.count} in {budget.span_ns / 1e9:g} s"
    for name, wording in rule.annotations.items():
        yield f"  {name}: {' | '.join(wording.parts)}"


def summary(file: Path) -> str:
    return "".join(f"{line}\n" for rule in load([file]).rules for line in lines(rule))


@pytest.mark.parametrize("file", GOOD, ids=lambda file: file.stem)
def test_a_good_file_means_what_it_says(file: Path) -> None:
    assert check([file]) == []
    assert summary(file) == file.with_suffix(".txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_file_is_refused_with_every_mistake_at_its_place(path: Path) -> None:
    told = "".join(f"{problem}\n" for problem in check([path])).replace(f"{path.parent}{os.sep}", "")
    assert told == (path.parent / f"{path.stem}.txt").read_text(encoding="utf-8")
    with pytest.raises(RuleError) as raised:
        load([path])
    assert list(raised.value.problems) == check([path])


def test_there_are_examples_of_everything() -> None:
    assert len(GOOD) >= 10
    assert len(BAD) >= 100


def test_mistakes_of_several_files_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(rules("a").replace("10%", "10"))
    (tmp_path / "a.yaml").write_text("virtpilot: 2\nrules: []\n")
    problems = check([tmp_path / "b.yaml", tmp_path / "a.yaml", tmp_path / "missing.yaml"])
    assert [(Path(p.file).name, p.line) for p in problems] == [("a.yaml", 1), ("b.yaml", 3), ("missing.yaml", 0)]
    assert problems[-1].message == "cannot be read: No such file or directory"


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    file.write_bytes(b"#" * (MAX_BYTES + 1))
    assert [p.message for p in check([file])] == ["larger than 256 KiB"]
    file.write_text(rules("a") + "#".ljust(MAX_BYTES - len(rules("a")), "-"))
    assert check([file]) == []


_HEAD = "virtpilot: 1\nrules:"
_BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in itertools.pairwise("abcdefghi"))
_TOO_MUCH = {
    "10 MB": ("#" * 10_000_000, ":0:0: larger than 256 KiB"),
    "100,000 rules": (rules(*(f"r{number}" for number in range(100_000))), ":0:0: larger than 256 KiB"),
    "100,000 entries": (_HEAD + "\n- x" * 50_000, ":0:0: more than 10000 lines"),
    "other line breaks": (_HEAD + "\r" * 6_000 + "\x85" * 5_000, ":0:0: more than 10000 lines"),
    "entries": (_HEAD + "\n- x" * 9_000, ":1003:3: more than 1000 entries in one list"),
    "entries in one line": (_HEAD + " [" + "a," * 100_000 + "]", ":2:2009: more than 1000 entries in one list"),
    "keys in one line": ("{" + "".join(f"k{n}: 1, " for n in range(20_000)) + "}", ": more than 1000 entries"),
    "parts": (_HEAD + " [" + f"[{'[a,a,a],' * 90}]," * 30 + "]", ": more than 6000 parts"),
    "comments": (_HEAD + "\n#" + "-" * 300_000, ":0:0: larger than 256 KiB"),
    "deep": ("[" * 100_000, ":1:1: more than 24 opening brackets in a row"),
    "deep with space": (_HEAD + " {a: [b, " + "[\n" * 9_000, ":2:16: more than 24 opening brackets in a row"),
    "deep otherwise": ("[a," * 30_000, ":1:37: nested more than 12 deep"),
    "deep blocks": ("- " * 30_000, ":1:25: nested more than 12 deep"),
    "brackets": (f"{_HEAD} [{{name: a, on: vm, when: '{'(' * 1900}'}}]", ":2:34: more than 200 parts"),
    "words": (f"{_HEAD} [{{name: a, on: vm, when: '{'x or ' * 390}x'}}]", ":2:34: more than 200 parts"),
    "bomb": (_BOMB, ":1:4: anchors and aliases are not used in rule files"),
    "regular expression": (
        f"{_HEAD} [{{name: a, on: vm, when: 'tags.a =~ \"(a+)+$\"'}}]",
        ":2:41: unexpected character '='",
    ),
    "call": (_HEAD + " [{name: a, on: vm, when: '__import__(\"os\")'}]", "`__import__(…)` is not a function"),
    "attribute": (_HEAD + " [{name: a, on: vm, when: x.__class__ > 1}]", "`x.` is not known"),
    "text that calls": (
        _HEAD + " [{name: a, on: vm, when: age_seconds > 1s, annotations: {a: \"{{ open('/etc/passwd') }}\"}}]",
        "cannot be told here",
    ),
}


@pytest.mark.parametrize("name", _TOO_MUCH)
def test_too_much_is_refused_by_a_limit_before_it_is_read(name: str, tmp_path: Path) -> None:
    text, message = _TOO_MUCH[name]
    file = tmp_path / "many.yaml"
    file.write_text(text)
    (problem,) = check([file])
    assert message in str(problem)


def test_more_than_all_rule_files_may_hold_is_refused(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.yaml").write_text("#" * 250_000)
    (problem,) = check([tmp_path])
    assert problem.message == "more than 2 MiB of rule files in all"


def test_more_windows_than_may_be_kept_are_refused(tmp_path: Path) -> None:
    text = "virtpilot: 1\nrules:\n"
    for number in range(201):
        text += f"  - {{name: r{number}, on: vm, when: 'avg(cpu_steal_ratio, {number + 10}s) > 10%'}}\n"
    (tmp_path / "a.yaml").write_text(text)
    (problem,) = check([tmp_path])
    assert (problem.line, problem.message) == (203, "more than 200 different windows in all rules")


def test_countless_mistakes_are_cut_with_a_word(tmp_path: Path) -> None:
    file = tmp_path / "many.yaml"
    file.write_text("virtpilot: 1\nrules:\n" + "  - x\n" * (MAX_PROBLEMS + 50))
    problems = check([file])
    assert len(problems) == MAX_PROBLEMS
    assert problems[-1].message.endswith("… and 50 more mistakes or so")


def test_a_folder_is_read_in_order_of_name_without_tests_and_hidden_files(tmp_path: Path) -> None:
    for name, rule in (
        ("b.yaml", "b"),
        ("a/z.yaml", "z"),
        ("c.test.yaml", "t"),
        (".#b.yaml", "h"),
        ("..data/b.yaml", "b"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(rules(rule))
    assert [rule.name for rule in load([tmp_path]).rules] == ["z", "b"]


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(rules("a"))
    (tmp_path / "link.yaml").symlink_to("a.yaml")
    assert [rule.name for rule in load([tmp_path, tmp_path / "a.yaml"]).rules] == ["a"]


def test_a_link_to_itself_is_a_mistake_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").symlink_to("a.yaml")
    assert [p.message for p in check([tmp_path])] == ["cannot be read: Too many levels of symbolic links"]


def test_a_folder_named_like_a_file_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").mkdir()
    assert [p.message for p in check([tmp_path])] == ["cannot be read: Is a directory"]
