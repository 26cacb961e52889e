"""Build, change and prove bundles."""
