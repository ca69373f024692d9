"""`python -m tests.fuzz TARGET [SECONDS]`: a long run that follows the code's branches, from the corpus that is kept.

Needs atheris (`make fuzz`). What breaks a promise is written here as `crash-…`: put it into the corpus.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["virtpilot"]):
    from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


def main() -> None:
    """Run one target; new inputs go into a folder of their own that is removed in the end."""
    name, seconds = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "60"
    with tempfile.TemporaryDirectory() as found:
        arguments = [
            sys.argv[0],
            found,
            str(CORPUS / name),
            f"-max_total_time={seconds}",
            "-timeout=20",
            "-rss_limit_mb=2048",
        ]
        atheris.Setup(arguments, TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
