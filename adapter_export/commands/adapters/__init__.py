"""Commands that make adapters without training."""
