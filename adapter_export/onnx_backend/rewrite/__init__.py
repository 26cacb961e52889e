"""Surgery on a copy of a base: slots, banks, inner values."""
