"""Commands that make adapters without training."""

ORDER = ("pack", "import", "compose", "merge", "export")
