"""The demo's live picture: what matters is legible on a terminal of 80 columns and 24 lines."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from tests.demos import CPU_RULES
from virtpilot.pipeline.demo import Demo
from virtpilot.pipeline.demo_run import names_of, picture


@pytest.fixture(scope="module")
def starving(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    demo = Demo(tmp_path_factory.mktemp("demo"), rules=CPU_RULES)
    for _ in range(60):
        demo.step()
    demo.close()
    return demo


def drawn(demo: Demo, width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(picture(demo, console, names_of(demo)))
    return captured.get().splitlines()


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (200, 60)])
def test_every_number_is_shown_in_full_whatever_the_terminal(starving: Demo, size: tuple[int, int]) -> None:
    lines = drawn(starving, *size)
    view = starving.fleet.view()
    for host in view.hosts:
        line = next(line for line in lines if host.name in line)
        assert len(re.findall(r"\d+%", line)) == 2
        assert f"% of {host.cpus}" in line
    for guest in view.guests:
        line = next(line for line in lines if guest.name in line)
        assert len(re.findall(r"\d+%", line)) == 3
        assert str(guest.cpu_shares) in line


@pytest.mark.parametrize("size", [(80, 24), (150, 45)])
def test_the_picture_fits_on_the_terminal_with_what_happened_last(starving: Demo, size: tuple[int, int]) -> None:
    lines = drawn(starving, *size)
    assert len(lines) <= size[1]
    assert lines[-1].startswith("╰")
    assert "vm-cpu-starved" in "\n".join(lines) or "cpu_shares" in "\n".join(lines)


def test_a_guest_on_the_move_is_shown_with_its_numbers(tmp_path: Path) -> None:
    demo = Demo(tmp_path, rules=CPU_RULES)
    while not any(guest.migration for guest in demo.fleet.view().guests):
        demo.step()
        assert demo.clock.monotonic_ns() < 400 * 10**9
    line = next(line for line in drawn(demo, 80, 24) if "web-1" in line and "→" in line)
    demo.close()
    assert len(re.findall(r"\d+%", line)) >= 4  # how far it is, CPU, steal, memory
