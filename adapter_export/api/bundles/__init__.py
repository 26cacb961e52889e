"""Build, prove, measure and sign bundles."""
