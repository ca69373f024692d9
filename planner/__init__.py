"""Planner: where guests should live and how hosts are divided."""
