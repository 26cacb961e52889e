"""Bundles: built, changed, proved."""
