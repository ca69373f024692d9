"""`make test` runs every test once, each in one of its parts, and ends as the worst of them did."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import chain, combinations
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

from deploy.testing import Part, Rank, Run, files_of, parts, worst
from tests.services import until

ROOT = Path(__file__).parents[2]
MARKS = ("lab", "alone", "one_core", "slow", "server")
# None of the small tests asks for examples, and to import Hypothesis takes as long as all else that pytest begins with.
PLAIN = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
KINDS = list(chain.from_iterable(combinations(MARKS, size) for size in range(len(MARKS) + 1)))


@pytest.mark.parametrize("own", KINDS, ids=" ".join)
def test_each_test_is_in_one_part(own: tuple[str, ...]) -> None:
    def marked(name: str, /, **_words: str | int | bool | None) -> bool:
        return name in own

    found = [
        part.marks for group in parts(cores=2) for part in group if Expression.compile(part.marks).evaluate(marked)
    ]
    assert len(found) == 1, found


def test_what_measures_has_nothing_beside_it_but_what_fills_the_gaps() -> None:
    for group in parts(cores=2, asked=3):
        measures = any("and alone" in part.marks for part in group)
        labs = [part for part in group if part.marks.startswith("lab")]
        assert all(part.rank is Rank.EQUAL for part in labs)
        beside = {part.rank for part in group if part not in labs}
        assert beside <= ({Rank.GAPS} if measures else {Rank.GAPS, Rank.BEHIND})


@pytest.mark.parametrize(
    ("codes", "whole"),
    [([0, 0], 0), ([0, 5], 0), ([5, 5], 5), ([0, 1, 0], 1), ([1, 2], 2), ([5, 1], 1), ([0, -9], -9), ([1, -9], -9)],
)
def test_the_worst_part_tells_for_all(codes: list[int], whole: int) -> None:
    assert worst(codes) == whole


def test_parts_at_once_tell_what_each_found(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The first as it comes, the others one after the other."""
    file = tmp_path / "test_small.py"
    file.write_text(
        """
import os
import pytest
@pytest.mark.slow
def test_first(): assert os.nice(0) == NICE_BEHIND
@pytest.mark.server
def test_second(): assert os.nice(0) == NICE
def test_third(): assert os.sched_getscheduler(0) == os.SCHED_IDLE
""".replace("NICE_BEHIND", str(min(os.nice(0) + 10, 19))).replace("NICE", str(os.nice(0)))
    )
    options = ["-c", str(ROOT / "pyproject.toml"), f"--rootdir={tmp_path}", "-p", "tests.conftest", "-v", str(file)]
    rest = Part("not slow and not server and not lab", rank=Rank.GAPS)
    group = [Part("slow", rank=Rank.BEHIND), Part("server", workers=1), Part("lab"), rest]
    files = {part.marks: [str(file)] for part in group}
    assert Run([*options, *PLAIN], files).all([group]) == [0, 0, 5, 0]
    said = capfd.readouterr().out
    assert said.index("test_first PASSED") < said.index("test_second") < said.index("3 deselected / 0 selected")


def test_what_fills_gaps_goes_on_beside_the_next_group(tmp_path: Path) -> None:
    """It begins when one of its own group has ended; what comes behind one that was broken off does not begin."""
    file, told = tmp_path / "test_small.py", tmp_path / "told"
    file.write_text(f"""
import pathlib, pytest
from tests.services import until
told = pathlib.Path({str(told)!r})
@pytest.mark.slow
def test_first(): pass
@pytest.mark.lab
def test_next(): told.touch()
@pytest.mark.server
def test_breaks_off(): pytest.exit("enough", returncode=2)
def test_fills():
    assert until(told.exists, 600)
""")
    options = ["-c", str(ROOT / "pyproject.toml"), f"--rootdir={tmp_path}", *PLAIN, str(file)]
    run = Run(options, {})
    rest = Part("not slow and not server and not lab", rank=Rank.GAPS)
    assert run.all([[Part("slow"), rest], [Part("lab")]]) == [0, 0, 0]
    told.unlink()
    broken_off, interrupted = run.all([[Part("server"), rest], [Part("lab")]])
    assert (broken_off, interrupted != 0) == (2, True)
    assert not told.exists()


def test_of_each_part_the_files_are_known_and_all_is_compiled_once(tmp_path: Path) -> None:
    """Whatever the environment says of writing byte code: workers would each do it again."""
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_small.py").write_text("import fractional\ndef test_small(): assert fractional.HALF")
    (tests / "test_real.py").write_text("import pytest\n@pytest.mark.lab\ndef test_lab(): pass\ndef test_plain(): pass")
    (tmp_path / "fractional.py").write_text("HALF = 1 / 2")
    options = ("-c", str(ROOT / "pyproject.toml"), f"--rootdir={tmp_path}", *PLAIN, str(tests))
    both = {"tests/test_real.py", "tests/test_small.py"}
    found = files_of(["lab", "not lab", "server"], tmp_path, *options)
    assert {marks: set(files) for marks, files in found.items()} == {
        "lab": {"tests/test_real.py"}, "not lab": both, "server": set(),
    }  # fmt: skip
    assert {one.name.split(".")[0] for one in tmp_path.rglob("*.pyc")} >= {"test_small", "test_real", "fractional"}
    (tests / "test_broken.py").write_text("import nothing_of_that_name")
    assert files_of(["lab"], tmp_path, *options) == {}


def test_whoever_ends_it_lets_fixtures_end_first(tmp_path: Path) -> None:
    file, up, down = (tmp_path / name for name in ("test_small.py", "up", "down"))
    file.write_text(f"""
import pathlib, select, pytest
@pytest.fixture
def lab():
    pathlib.Path({str(up)!r}).touch()
    yield
    pathlib.Path({str(down)!r}).touch()
@pytest.mark.lab
@pytest.mark.alone
def test_waits(lab):
    while True: select.select([], [], [], 0.1)  # a signal right before a single wait would not end it
""")
    options = ["-c", str(ROOT / "pyproject.toml"), f"--rootdir={tmp_path}", "-p", "tests.conftest", str(file)]
    begin = "import sys; from deploy.testing import *; heed_sigterm(); Run(sys.argv[1:], {}).all([[Part('lab')]])"
    with subprocess.Popen([sys.executable, "-c", begin, *options, *PLAIN], cwd=ROOT) as running:
        try:
            assert until(up.exists, 600)
            running.send_signal(signal.SIGTERM)
            assert running.wait(600) == 128 + signal.SIGTERM
        finally:
            running.kill()
    assert down.exists()
