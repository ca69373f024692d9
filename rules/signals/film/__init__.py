"""Many moments of the same subjects at once: what is known beforehand need not be evaluated moment by moment."""
