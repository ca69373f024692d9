"""`python -m virtpilot.pipeline` is `virtpilot`."""

from virtpilot.pipeline.cli import main

main()
