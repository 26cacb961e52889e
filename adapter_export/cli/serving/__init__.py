"""Commands that take bundles into production."""
