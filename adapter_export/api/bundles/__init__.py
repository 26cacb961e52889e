"""Bundles: made, changed, proved, measured and signed."""
