"""The rule file: format, grammar, checks, compilation."""

from virtpilot.rules.language.load import check, load
from virtpilot.rules.language.records import Expect, MigrateRemedy, NoData, Rule, RuleSet, SetRemedy, Severity

__all__ = ["Expect", "MigrateRemedy", "NoData", "Rule", "RuleSet", "SetRemedy", "Severity", "check", "load"]
