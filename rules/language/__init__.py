"""The rule file: format, grammar, checks, compilation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virtpilot.rules.language.load import check, load

if TYPE_CHECKING:
    from virtpilot.rules.language.records import Expect, MigrateRemedy, NoData, Rule, RuleSet, SetRemedy, Severity

__all__ = ["Expect", "MigrateRemedy", "NoData", "Rule", "RuleSet", "SetRemedy", "Severity", "check", "load"]


def __getattr__(name: str) -> Any:
    """Return a record of rules: NumPy is loaded with them, and a file that is refused as YAML waits for none of it."""
    if name not in __all__:
        raise AttributeError(name)
    from virtpilot.rules.language import records

    return getattr(records, name)
