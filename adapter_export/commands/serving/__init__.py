"""Commands that take bundles into production."""

ORDER = ("serve", "bench", "ship", "push", "pull")
