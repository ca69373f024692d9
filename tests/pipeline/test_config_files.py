"""Each process's config file: its sample is complete and loads, with the required options filled in."""

from pathlib import Path

import pytest

from virtpilot.errors import ConfigError
from virtpilot.pipeline import settings
from virtpilot.pipeline.config import CONFIGS


@pytest.mark.parametrize("process", sorted(CONFIGS))
def test_a_config_with_only_the_cluster_is_taken_with_every_default(process: str, tmp_path: Path) -> None:
    file = tmp_path / f"{process}.toml"
    file.write_text('cluster = "c1"\n[bus]\nhost = "broker"\n')
    loaded = settings.load(file, CONFIGS[process])
    assert loaded.cluster == "c1"
    assert loaded.bus.host == "broker"


@pytest.mark.parametrize("process", sorted(CONFIGS))
def test_every_section_is_checked_even_when_it_stands_empty(process: str, tmp_path: Path) -> None:
    file = tmp_path / f"{process}.toml"
    sections = [f"[{name}]" for name in CONFIGS[process].__struct_fields__ if name in settings.sample(CONFIGS[process])]
    tables = [section for section in sections if f"\n{section}" in settings.sample(CONFIGS[process])]
    assert tables
    file.write_text('cluster = "c1"\n' + "\n".join(tables) + "\n")
    settings.load(file, CONFIGS[process])


@pytest.mark.parametrize("process", sorted(CONFIGS))
def test_an_unknown_key_is_told_with_its_place_and_the_nearest_name(process: str, tmp_path: Path) -> None:
    file = tmp_path / f"{process}.toml"
    file.write_text('cluster = "c1"\n[bus]\nhots = "broker"\n')
    with pytest.raises(ConfigError) as caught:
        settings.load(file, CONFIGS[process])
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (3, 1)
    assert "host" in problem.message
