"""Collectors: one module per source of measurements."""
