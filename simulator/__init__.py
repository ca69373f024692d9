"""Simulator: the fleet model in virtual time."""
