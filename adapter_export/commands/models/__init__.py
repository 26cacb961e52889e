"""Commands on base models."""
