"""Commands that make, verify and use bundles."""
