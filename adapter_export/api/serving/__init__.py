"""Bundles in production: served, shipped, pushed and pulled."""
