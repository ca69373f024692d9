"""The audit log: what was decided, allowed, commanded and done, in a chain that shows whatever is changed in it."""
