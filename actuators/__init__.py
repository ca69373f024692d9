"""Actuators: one module per knob, with guards, leases and signed commands."""
