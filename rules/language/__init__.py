"""The rule file: format, grammar, checks, compilation."""
