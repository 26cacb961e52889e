"""Commands that look at models."""
