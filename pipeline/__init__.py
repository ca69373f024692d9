"""Pipeline: the one place where the parts are wired together."""
