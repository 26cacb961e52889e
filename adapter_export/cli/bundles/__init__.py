"""Commands on bundles."""
