"""virtpilot: the automatic pilot for plain libvirt hosts."""

__version__ = "0.1.0"
